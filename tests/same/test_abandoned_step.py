"""Until commit nothing has changed, so a step can be abandoned at any point before it."""

import copy

import torch
from torch import nn

from samestep.model.optim import AdamW
from samestep.replica.step import Step
from samestep.wire import loopback


def test_weights_and_moments_rest_until_commit():
    torch.manual_seed(0)
    inputs, begun = torch.randn(4, 3, 6), nn.Linear(6, 40)

    def replica(wire):
        module = copy.deepcopy(begun)
        step = Step(module, wire, AdamW(), lanes=4, clip=0.5)

        def held():
            return [t.clone() for t in (step.state.weights, *(m for kept in step.state.moments.values() for m in kept))]

        def same(kept):
            return all(map(torch.equal, kept, held()))

        for _ in range(2):
            before = held()
            for lane in step.lanes:
                step.backward(module(inputs[lane]).square().sum() / 12)
            step.reduce()
            step.propose(1e-2)
            assert same(before)
            step.commit()
            assert not same(before)
        return True

    assert loopback.run(3, replica) == [True] * 3
