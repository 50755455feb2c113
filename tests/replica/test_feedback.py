"""What was rounded off rests with its unit, is added in the next step, and a flipped bit in it is found."""

import copy

import pytest
import torch
from torch import nn

from samestep.errors import Corrupted
from samestep.model.optim import AdamW
from samestep.replica.feedback import Feedback
from samestep.replica.step import Step
from samestep.sync.slices import layout
from samestep.sync.tree import Node
from samestep.wire import loopback
from samestep.wire.formats import Formats

PLAN = layout([3000, 1000, 3000], 4, bucket=2048)
SUMS = {1: Node(6, 7), 2: Node(7, 8)}


def resting():
    return {unit: torch.full((PLAN.total,), float(unit)) for unit in (6, 7)}


def test_it_is_added_to_the_buffers_of_its_units_in_that_bucket_only():
    buffers = [torch.zeros(PLAN.total) for _ in range(3)]
    Feedback(PLAN, resting(), SUMS).recall(1, buffers)
    there = PLAN.bucket_region(1)
    for buffer, value in zip(buffers, (0, 6, 7), strict=True):
        assert buffer[there.start : there.stop].eq(value).all()
        assert int(buffer.count_nonzero()) in (0, there.size)


def test_what_is_left_rests_for_parameters_that_had_a_gradient_in_the_buckets_that_met():
    kept = resting()
    Feedback(PLAN, kept, SUMS).keep([torch.full((PLAN.total,), -1.0)] * 3, [True, False, True], range(1, 3))
    for values in kept.values():
        for number, region in enumerate(PLAN.regions):
            places = torch.arange(region.start, region.stop)
            taken = values[places] == -1
            assert torch.equal(taken, (places >= 2048) & (places < 6144) & torch.tensor(number != 1))


def test_where_nothing_is_rounded_nothing_is_added():
    buffers = [torch.zeros(PLAN.total)] * 3
    Feedback(PLAN, {}, {0: Node(0, 8)}).recall(0, buffers)
    assert not buffers[0].any()


@pytest.mark.parametrize("where", ["feedback", "master"])
def test_a_bit_that_flips_is_found_before_the_commit(where):
    module = nn.Linear(6, 300)

    def replica(wire):
        mine = copy.deepcopy(module)
        step = Step(mine, wire, AdamW(), lanes=4, scrub=1, formats=Formats("int4", "int4"))
        step.seal()
        for n in range(2):
            for lane in step.lanes:
                step.backward(mine(torch.full((3, 6), 1.0 + lane)).square().sum() / 12)
            if n:
                units = step.state.kept.units
                values = units[2][0] if where == "feedback" else next(iter(step.state.moments.values()))[-1]
                values.view(torch.int32)[17] ^= 1 << 20
            step.update(1e-2)

    with pytest.raises(Corrupted, match="the feedback of unit 2 changed" if where == "feedback" else "master of"):
        loopback.run(1, replica)
