"""A new generation holds what the old one held, divided anew, bit for bit, and nothing that was there has changed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from samestep.errors import ClusterError
from samestep.replica.carried import Carried
from samestep.replica.handover import Handover
from samestep.sync import tree
from samestep.sync.exact import share
from samestep.sync.slices import layout
from samestep.wire import loopback
from tests.replica.counting import counting

SIZES = [5000, 17, 3000]
PLAN = layout(SIZES, 8, bucket=2048)


def state(rank, size, copies, seed=0):
    return counting([nn.Parameter(torch.zeros(n)) for n in SIZES], PLAN, rank, size, copies, seed)


def moved(before, size, copies):
    """The states of the new generation by rank, and the moments that each got. Those that join begin with nothing."""
    old = {rank: state(o, len(before), copies, 7) for o, rank in enumerate(before) if rank is not None}

    def replica(wire):
        mine = old.get(wire.rank) or state(0, 1, 1)
        given = Handover(wire, PLAN, mine, before, copies, 5)
        moments = given.kept(share(PLAN, 8, wire.rank, wire.size, copies)).moments
        return mine, moments, given.record({"from": wire.rank})

    return loopback.run(size, replica)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 2), st.integers(2, 4))
def test_whoever_is_lost_and_joins_each_holds_what_it_has_to(size, lost, joined, copies):
    ranks = iter(range(size))
    gone = lost % size if size > 1 else None
    before = [None if o == gone else next(ranks) for o in range(size)]
    new = size - (gone is not None) + joined
    for rank, (mine, moments, record) in enumerate(moved(before, new, copies)):
        wanted = state(rank, new, copies, 7)
        assert torch.equal(mine.weights, wanted.weights)
        assert moments.keys() == wanted.moments.keys()
        assert all(torch.equal(a, b) for r in moments for a, b in zip(moments[r], wanted.moments[r], strict=True))
        assert record == {"from": 0 if rank >= new - joined else rank}


def test_what_was_held_before_has_not_changed():
    for rank, (mine, _, _) in enumerate(moved([0, None, 1], 2, 2)):
        kept = state([0, 2][rank], 3, 2, 7)
        assert all(
            torch.equal(a, b) for r in kept.moments for a, b in zip(mine.moments[r], kept.moments[r], strict=True)
        )


@pytest.mark.parametrize(("before", "size"), [([0, 1], 3), ([2, 0], 3), ([0], 4), ([0, 1, 2], 5)])
def test_what_belongs_to_a_unit_goes_with_it(before, size):
    """Nobody is gone: units would be lost with their replica."""

    def replica(wire):
        mine = state(before.index(wire.rank), len(before), 1) if wire.rank in before else state(0, 1, 1)
        mine.carried = Carried(PLAN, "lane", ["feedback"], 8)
        if wire.rank in before:
            for unit in tree.spans(8, len(before))[before.index(wire.rank)]:
                mine.kept.units[unit] = [torch.full((PLAN.total,), 1.0 + unit)]
        units = Handover(wire, PLAN, mine, before, 1, 5).kept(share(PLAN, 8, wire.rank, wire.size, 1)).units
        return {unit: set(values[0].tolist()) for unit, values in units.items()}

    for rank, found in enumerate(loopback.run(size, replica)):
        assert found == {unit: {1.0 + unit} for unit in tree.spans(8, size)[rank]}


def test_state_that_arrives_changed_is_refused():
    class Flipping(loopback.Loopback):
        def exchange(self, tag, sends, receives):
            if self.rank == 0 and tag.bucket == 1 and sends.get(1):
                sends = {1: [t.clone() for t in sends[1]]}
                sends[1][0].view(torch.int32)[3] ^= 1 << 20
            return super().exchange(tag, sends, receives)

    def replica(wire):
        wire.__class__ = Flipping
        mine = state(0, 1, 1, 7)
        Handover(wire, PLAN, mine, [0], 2, 5).kept(share(PLAN, 8, wire.rank, wire.size, 2))

    with pytest.raises(ClusterError, match="replica 0 handed over after step 5 arrived changed"):
        loopback.run(2, replica)
