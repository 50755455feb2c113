"""What is computed twice: every so often one lane, by another replica where there is one."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.sync.again import again
from samestep.sync.tree import spans


@given(st.integers(0, 1000), st.integers(1, 50), st.integers(1, 8))
def test_it_is_due_each_so_many_steps_and_known_to_all(step: int, every: int, size: int) -> None:
    found = again(step, every, spans(8, size))
    assert (found is not None) == (step % every == 0)
    if found:
        assert found.lane in spans(8, size)[found.carrier]
        assert (found.witness != found.carrier) == (size > 1)


def test_never_is_an_answer() -> None:
    assert again(0, 0, spans(8, 2)) is None


def test_the_lane_does_not_follow_the_number_of_replicas() -> None:
    lanes = [[again(step, 1, spans(8, size)).lane for step in range(50)] for size in (1, 2, 3, 8)]
    assert lanes[0] == lanes[1] == lanes[2] == lanes[3] and set(lanes[0]) == set(range(8))


def test_of_four_or_more_neighbours_are_not_compared() -> None:
    for size in (4, 5, 8):
        found = [again(step, 1, spans(8, size)) for step in range(50)]
        assert all(1 < abs(one.carrier - one.witness) < size - 1 for one in found)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_each_replica_is_looked_at_with_the_odds_that_are_stated(size: int) -> None:
    found = [again(step, 1, spans(8, size)) for step in range(4000)]
    seen = Counter(rank for one in found for rank in (one.carrier, one.witness))
    assert all(seen[rank] == pytest.approx(4000 * 2 / size, rel=0.1) for rank in range(size))
