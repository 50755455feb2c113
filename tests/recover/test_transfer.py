"""Each member of a new generation gets all that it has to hold, once, from one that held it in the old one."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from samestep.recover import transfer
from samestep.sync.share import held, holders
from samestep.sync.slices import layout
from samestep.sync.tree import spans

PLAN = layout([5000, 17, 3000], 8, bucket=2048)


@st.composite
def changes(draw: st.DrawFn) -> tuple[list[int | None], int, int]:
    """What becomes of the old ranks (survivors keep their order, joiners come after them), new size, copies."""
    alive = draw(st.lists(st.booleans(), min_size=1, max_size=6))
    assume(any(alive))
    ranks = iter(range(len(alive)))
    before = [next(ranks) if lives else None for lives in alive]
    return before, sum(alive) + draw(st.integers(0, 3)), draw(st.integers(1, 4))


def recoverable(before: list[int | None], copies: int) -> bool:
    size = len(before)
    return all(any(before[h] is not None for h in holders(owner, size, copies)) for owner in range(size))


@given(changes())
def test_all_that_has_to_be_held_arrives_once_from_one_that_held_it(change: tuple[list[int | None], int, int]) -> None:
    before, size, copies = change
    assume(recoverable(before, copies))
    old = {rank: held(PLAN, o, len(before), copies) for o, rank in enumerate(before) if rank is not None}
    for bucket in range(PLAN.buckets):
        arrived = {rank: torch.zeros(PLAN.total) for rank in range(size)}
        for move in transfer.moments(PLAN, before, size, copies, bucket):
            assert move.within in old[move.source][bucket].values()
            assert move.within.start <= move.region.start < move.region.stop <= move.within.stop
            assert move.to in held(PLAN, move.target, size, copies)[bucket].values()
            arrived[move.target][move.region.start : move.region.stop] += 1
        for rank in range(size):
            wanted = torch.zeros(PLAN.total)
            for region in held(PLAN, rank, size, copies)[bucket].values():
                wanted[region.start : region.stop] += 1
            assert torch.equal(arrived[rank], wanted)


@given(changes())
def test_nothing_travels_that_is_there_already(change: tuple[list[int | None], int, int]) -> None:
    before, size, copies = change
    assume(recoverable(before, copies))
    old = {rank: held(PLAN, o, len(before), copies) for o, rank in enumerate(before) if rank is not None}
    for bucket in range(PLAN.buckets):
        for move in transfer.moments(PLAN, before, size, copies, bucket):
            has = move.within in old.get(move.target, [{}] * PLAN.buckets)[bucket].values()
            assert has == (move.source == move.target)


def test_a_part_that_nobody_holds_any_more_is_an_error() -> None:
    with pytest.raises(ValueError, match="nobody holds what old rank 1 owned"):
        transfer.moments(PLAN, [0, None, None, 1], 2, 2, 0)
    assert transfer.moments(PLAN, [0, None, None, 1], 2, 3, 0)


def test_weights_go_to_those_that_join_and_the_others_take_turns() -> None:
    sent = [transfer.weights([0, None, 1], 4, bucket) for bucket in range(2)]
    assert [sorted(target for _, target in moves) for moves in sent] == [[2, 3], [2, 3]]
    assert {source for moves in sent for source, _ in moves} == {0, 1}


@given(st.integers(1, 12), st.data())
def test_each_unit_goes_from_the_replica_that_had_it_to_the_one_that_will(count, data):
    old, new = data.draw(st.integers(1, count)), data.draw(st.integers(1, count))
    before = data.draw(st.permutations(range(max(old, new))))[:old]
    moves = transfer.units(count, before, new)
    assert [unit for unit, _, _ in moves] == list(range(count))
    for unit, source, target in moves:
        assert unit in spans(count, old)[before.index(source)] and unit in spans(count, new)[target]


def test_a_unit_whose_replica_is_gone_is_named():
    with pytest.raises(ValueError, match="nobody holds what unit 2 had: old rank 1 is gone"):
        transfer.units(4, [0, None], 2)
