"""A step is applied by all or by nobody, whichever replica is lost and wherever."""

import copy

import pytest
import torch
from torch import nn

from samestep.errors import PeerLost
from samestep.model.optim import AdamW
from samestep.replica.board import Wish
from samestep.replica.step import Step
from samestep.wire import loopback
from samestep.wire.collective import Operation, Tag

LANES, REPLICAS = 4, 3
# Made once: replicas are threads here, and a seed set in one is drawn from by all.
MODULE = nn.Linear(6, 40)


def computed(wire):
    """A step whose gradients are there, and not yet added up."""
    module = copy.deepcopy(MODULE)
    step = Step(module, wire, AdamW(), lanes=LANES)
    for lane in step.lanes:
        step.backward(module(torch.full((3, 6), 1.0 + lane)).square().sum() / 12)
    return step


def proposed(wire):
    step = computed(wire)
    step.reduce()
    step.propose(1e-2)
    return step


@pytest.mark.parametrize("lost_in", [Operation.GATHER, Operation.READY])
def test_a_step_that_a_lost_replica_may_not_have_is_applied_by_nobody(lost_in):
    def replica(wire):
        step = computed(wire)
        before = step.state.weights.clone()
        step.reduce()
        with pytest.raises(PeerLost):
            try:
                step.propose(1e-2)
                step.commit()
            finally:
                wire.cancel("replica 1 is gone")
        return step.number, torch.equal(step.state.weights, before), step.ready

    found = loopback.run(REPLICAS, replica, faults={(1, Tag(0, lost_in)): PeerLost("killed")})
    assert found == [(0, True, lost_in is Operation.READY)] * REPLICAS


@pytest.mark.parametrize("number", [0, 1])
def test_a_survivor_goes_to_the_step_where_others_are_and_no_further(number):
    def replica(wire):
        step = proposed(wire)
        step.settle(number)
        return step

    def committed(wire):
        step = proposed(wire)
        step.commit()
        return step

    wanted = loopback.run(REPLICAS, committed if number else computed)
    for step, like in zip(loopback.run(REPLICAS, replica), wanted, strict=True):
        assert (step.number, step.ready) == (number, number == 0)
        assert torch.equal(step.state.weights, like.state.weights)
        for region, moments in step.state.moments.items():
            assert all(map(torch.equal, moments, like.state.moments[region]))


@pytest.mark.parametrize("wish", [Wish.GATHER, Wish.STOP])
def test_what_one_replica_has_been_told_all_learn_in_the_same_step(wish):
    def replica(wire):
        return computed(wire).reduce(wish if wire.rank == 1 else Wish.NONE).wish

    assert loopback.run(REPLICAS, replica) == [wish] * REPLICAS
