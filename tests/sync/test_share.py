"""Every element is owned by one replica and held by as many as was asked for, neighbours in rank."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.sync.exact import share
from samestep.sync.share import held, holders
from samestep.sync.slices import layout

SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=5)


@given(SIZES, st.integers(1, 6), st.integers(1, 7))
def test_each_element_is_held_by_so_many_replicas(sizes: list[int], size: int, copies: int) -> None:
    plan = layout(sizes, 8, bucket=2048)
    count = torch.zeros(plan.total)
    for rank in range(size):
        for regions in held(plan, rank, size, copies):
            for region in regions.values():
                assert region.size > 0
                count[region.start : region.stop] += 1
    assert set(count.tolist()) == {min(copies, size)}


@given(SIZES, st.integers(1, 6), st.integers(1, 7))
def test_a_replica_holds_what_it_owns(sizes: list[int], size: int, copies: int) -> None:
    plan = layout(sizes, 8, bucket=2048)
    for rank in range(size):
        mine = share(plan, 8, rank, size, copies)
        assert all(
            not owned.size or owned == regions.get(rank) for owned, regions in zip(mine.owned, mine.held, strict=True)
        )


def test_those_that_hold_are_the_owner_and_the_ranks_after_it() -> None:
    assert holders(0, 4, 1) == [0]
    assert holders(3, 4, 2) == [3, 0]
    assert holders(1, 3, 9) == [1, 2, 0]
