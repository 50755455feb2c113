"""Step times from what a pilot has measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.plan.timing import Bytes, Measured, Work, exact, islands, moved

TABLE = [(1000, 0.001), (100_000, 0.002), (1_000_000, 0.1)]
SLOW = [(1000, 0.001), (1_000_000, 1.0)]
WORK = Work(elements=10_000_000, buckets=8, lanes=2, micro_batches=3)
SENT = Bytes(10_000_000, 10_000_000)


def measured(table=SLOW, replicas=4, **coding):
    return Measured(replicas, 0.1, 0.2, 1e-9, 1e-10, coding, table)


@pytest.mark.parametrize(
    ("size", "seconds"),
    [(0, 0.001), (1000, 0.001), (50_500, 0.0015), (100_000, 0.002), (550_000, 0.051), (1_900_000, 0.198)],
)
def test_an_exchange_takes_what_the_table_says_or_what_lies_on_its_lines(size, seconds):
    assert moved(TABLE, size) == pytest.approx(seconds)


def test_a_table_of_one_size_says_the_same_of_all():
    assert moved(TABLE[:1], 10**9) == 0.001


@given(st.floats(0, 1e8), st.floats(0, 1e8))
def test_more_bytes_never_take_less(one, other):
    low, high = sorted((one, other))
    assert moved(TABLE, low) <= moved(TABLE, high)


def test_every_micro_batch_of_every_lane_is_computed():
    found = exact(measured(), WORK, SENT, "float32", "float32")
    assert (found["forward"], found["backward"]) == (pytest.approx(0.6), pytest.approx(1.2))


def test_sums_hide_behind_the_backward_of_the_last_lane_but_for_the_last_bucket():
    slow = exact(measured(), WORK, SENT, "float32", "float32")
    assert slow["sums"] == pytest.approx(moved(SLOW, 10_000_000) - 0.2 * 7 / 8)
    fast = exact(measured([(1000, 1e-5), (10_000_000, 0.01)]), WORK, SENT, "float32", "float32")
    assert 0 < fast["sums"] < 0.002 and fast["weights"] == pytest.approx(0.01)


def test_one_replica_exchanges_nothing():
    for found in (
        exact(measured(replicas=1), WORK, SENT, "float32", "float32"),
        islands(measured(replicas=1), WORK, SENT, "float32", "float32", every=10, overlap=0, carried=2),
    ):
        assert found["sums"] == found["weights"] == found["words"] == 0


def test_rounding_costs_what_was_measured_of_each_lane_and_of_the_share_of_new_weights():
    found = exact(measured(int4=1e-8, int8=1e-9), WORK, SENT, "int4", "int8")
    assert found["coding"] == pytest.approx(2 * 0.1 + 10_000_000 / 4 * 1e-9)
    assert exact(measured(int4=1e-8), WORK, SENT, "float32", "float32")["coding"] == 0


def test_what_islands_exchange_is_shared_by_the_steps_between_two_meetings():
    often, seldom = (
        islands(measured(), WORK, SENT, "float32", "float32", every=every, overlap=0, carried=2) for every in (1, 50)
    )
    assert often["weights"] == pytest.approx(50 * seldom["weights"])
    assert often["forward"] == seldom["forward"] and often["update"] == seldom["update"]


def test_overlap_hides_sums_behind_whole_steps():
    bare, behind, all_behind = (
        islands(measured(), WORK, SENT, "float32", "float32", every=10, overlap=overlap, carried=2)["sums"]
        for overlap in (0, 2, 9)
    )
    assert bare - behind == pytest.approx(2 * 6 * 0.3 / 10)
    assert all_behind == pytest.approx(moved(SLOW, 10_000_000 / 8) / 10)
