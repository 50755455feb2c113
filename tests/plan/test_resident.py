"""What a replica has resident: every term against the objects of a real step."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from samestep.model.optim import AdamW
from samestep.plan import resident
from samestep.plan.facts import Facts
from samestep.plan.kept import Micro
from samestep.plan.resident import Held, Program
from samestep.replica.step import Step
from samestep.sync.slices import layout
from samestep.wire import loopback
from samestep.wire.formats import Formats

LANES = 8
torch.manual_seed(0)
MODULE = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 40))
HELD = Held(layout([p.numel() for p in MODULE.parameters()], LANES, bucket=2048), LANES, 1, 2)
PROGRAM, FACTS, MICRO = Program(1e6, 2e6), Facts(2, 64, 2, 2, 32, 160, 300), Micro(2, 64, 2)


def of(held, replicas, rank=0, facts=None):
    return resident.replica(PROGRAM, facts, MICRO, held, replicas, rank)


def made(replicas, **settings):
    """Of each replica the bytes of its weights, moments and gradient buffers."""

    def replica(wire):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 40))
        step = Step(module, wire, AdamW(), lanes=LANES, bucket=2048, **settings)
        moments = sum(tensor.nbytes for tensors in step.state.moments.values() for tensor in tensors)
        return step.state.weights.nbytes, moments, sum(buffer.nbytes for buffer in step._gradients.buffers)

    return loopback.run(replicas, replica)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 8])
def test_weights_moments_and_gradients_are_those_of_a_step(replicas, accumulate, copies):
    held = replace(HELD, accumulate=accumulate, copies=copies)
    for rank, (weights, moments, gradients) in enumerate(made(replicas, copies=copies, accumulate=accumulate)):
        parts = of(held, replicas, rank).own
        assert parts["weights"] == weights and parts.get("moments", 0) == moments
        assert parts["gradients to share" if replicas > 1 else "gradients"] == gradients


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_rounded_gradients_take_a_buffer_a_lane_and_what_was_rounded_off(name):
    formats = Formats(name, name)
    held = replace(HELD, formats=formats)
    for rank, (_, moments, gradients) in enumerate(made(3, formats=formats)):
        parts = of(held, 3, rank).own
        assert parts.get("moments", 0) == moments  # with masters
        assert parts["gradients"] == gradients
        assert parts["rounded off"] == gradients - held.flat


def test_what_others_share_counts_once_on_the_machine():
    each = [of(HELD, 3, rank) for rank in range(3)]
    assert all(one.seen > 0 for one in each)
    whole = resident.machine(PROGRAM, None, MICRO, HELD, 3)
    assert whole == sum(sum(one.own.values()) for one in each) + PROGRAM.mapped
    assert whole < sum(one.bytes for one in each)


def test_alone_nothing_is_shared_and_a_micro_batch_comes_on_top():
    bare, working = of(HELD, 1), of(HELD, 1, facts=FACTS)
    assert bare.shared == {} and bare.seen == 0
    assert set(working.private) - set(bare.private) == {"activations", "logits", "splinters"}
    assert working.bytes > bare.bytes


def test_new_weights_lie_beside_the_flat_ones_only_where_nothing_takes_their_place():
    assert "start" not in of(HELD, 1).private  # gradients and moments do
    alone = replace(HELD, moments=0)
    assert of(alone, 2).private["start"] == HELD.flat


def test_frozen_weights_as_they_are_stored_are_mapped():
    parts = of(replace(HELD, frozen=5e6, mapped=4e6), 2)
    assert parts.private["frozen weights"] == 1e6 and parts.mapped == {"libraries": 2e6, "stored weights": 4e6}


def test_islands_have_weights_and_moments_of_their_own():
    held = replace(HELD, strategy="diloco", islands=4)
    one, four = of(held, 1).private, of(held, 4).private
    assert one["islands"] == 4 * 3 * HELD.flat and four["islands"] == 3 * HELD.flat
    assert one["moments"] == HELD.flat  # of the outer step


def test_a_run_that_saves_copies_what_it_owns():
    assert of(replace(HELD, saves=True), 1).private["checkpoint"] == 3 * HELD.flat
    assert "checkpoint" not in of(HELD, 1).private
