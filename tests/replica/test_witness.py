"""A gradient that was computed wrongly is seen by the replica that computes it again, and no result changes."""

import copy

import pytest
import torch
from torch import nn

from samestep.errors import Corrupted, PeerLost
from samestep.model.optim import AdamW
from samestep.replica.step import Step
from samestep.sync.again import again
from samestep.sync.tree import spans
from samestep.wire import loopback

LANES, STEPS = 8, 6


def trained(replicas, every, spoiled=lambda rank, n, lane: 0.0, micros=2):
    """What each replica came to: (the weights, the lanes of each step), or the error. spoiled: added to a gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 30), nn.Tanh(), nn.Linear(30, 40))
    inputs = torch.randn(STEPS, LANES, micros, 3, 5, generator=torch.Generator().manual_seed(3))

    def replica(wire):
        mine, lanes = copy.deepcopy(model), []
        step = Step(mine, wire, AdamW(), lanes=LANES, accumulate=micros, bucket=4096, recompute=every)
        try:
            for n in range(STEPS):
                lanes.append(step.lanes)
                for lane in step.lanes:
                    for micro in range(micros):
                        out = mine(inputs[n, lane, micro])
                        by = spoiled(wire.rank, n, lane)
                        out.register_hook(lambda g, by=by: g + by)
                        step.backward(out.square().sum() / 200)
                step.update(1e-2)
        except (Corrupted, PeerLost) as error:
            wire.cancel(str(error))
            return error
        return step.state.weights.clone(), lanes

    return loopback.run(replicas, replica)


@pytest.mark.parametrize("micros", [1, 2])
def test_what_is_computed_again_is_added_to_nothing(micros):
    (plain, _), *_ = trained(1, 0, micros=micros)
    for replicas in (1, 2, 3, 8):
        for every in (1, 3):
            for weights, _ in trained(replicas, every, micros=micros):
                assert torch.equal(weights, plain)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_one_replica_has_one_lane_more_in_each_step_that_is_looked_at(replicas):
    found = trained(replicas, 2)
    for n in range(STEPS):
        counts = sorted(len(lanes[n]) for _, lanes in found)
        assert counts == [LANES // replicas] * (replicas - 1) + [LANES // replicas + (n % 2 == 0)]


@pytest.mark.parametrize("replicas", [2, 4, 5])
@pytest.mark.parametrize("role", ["carrier", "witness"])
def test_one_that_computes_wrongly_is_named_with_the_one_that_it_was_compared_to(replicas, role):
    due = again(3, 3, spans(LANES, replicas))
    wrong = getattr(due, role)
    found = trained(replicas, 3, lambda rank, n, lane: 1e-7 * (rank == wrong and n == 3 and lane == due.lane))
    named = {rank for rank, error in enumerate(found) if isinstance(error, Corrupted)}
    assert named == {due.carrier, due.witness}
    for rank, error in enumerate(found):
        wanted = f"lane {due.lane} after step 3, computed by ranks {due.carrier} and {due.witness}"
        assert wanted in str(error) if rank in named else isinstance(error, PeerLost)


def test_one_that_is_alone_sees_a_fault_that_does_not_repeat():
    due, times = again(0, 1, spans(LANES, 1)), []

    def once(rank, n, lane):
        times.append(lane)
        return 1e-7 * (n == 0 and lane == due.lane and times.count(lane) == 1)

    (error,) = trained(1, 1, once, micros=1)
    assert isinstance(error, Corrupted) and "computed twice by this replica, has two values" in str(error)


def test_a_fault_in_a_lane_that_is_not_drawn_is_not_seen():
    due = again(0, 100, spans(LANES, 2))
    found = trained(2, 100, lambda rank, n, lane: 1e-7 * (lane != due.lane))
    assert not any(isinstance(one, Exception) for one in found)
