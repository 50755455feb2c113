"""Replicas that share cores."""

from dataclasses import replace

import pytest

from samestep.plan import cores
from samestep.plan.cores import Trial, finish
from samestep.plan.resident import Held
from samestep.sync.slices import layout

TRIAL = Trial(2, 1, 2, 1, alone=0.5, together=0.6, exchange=0.01, update=0.08, rate=2e-9, pass_=1e-9)
HELD = Held(layout([1_000_000], 8), lanes=8, accumulate=1, moments=2)


@pytest.mark.parametrize(
    ("work", "places", "seconds"),
    [
        ([3.0], 2, 3),
        ([4, 4], 2, 4),
        ([2, 2, 2, 2], 2, 4),
        ([2, 3, 3], 2, 4),  # all share until the short one is done; then the others have a core each
        ([1, 1, 4], 2, 4.5),
        ([1, 2], 1, 3),
        ([1, 2], 0.5, 6),
        ([], 2, 0),
    ],
)
def test_work_is_done_when_cores_that_are_shared_fairly_have_done_it(work, places, seconds):
    assert finish(work, places) == pytest.approx(seconds)


def test_at_its_own_number_of_replicas_a_pilot_predicts_what_it_measured():
    assert cores.step(TRIAL, HELD, 2) == pytest.approx({"compute": 4 * 0.6, "exchange": 0.01, "update": 0.08})


def test_alone_a_micro_batch_takes_what_it_took_alone():
    assert cores.step(TRIAL, HELD, 1)["compute"] == 8 * 0.5


def test_more_replicas_than_cores_compute_no_faster():
    two, three, four = (cores.step(TRIAL, HELD, n) for n in (2, 3, 4))
    assert two["compute"] == pytest.approx(three["compute"]) == pytest.approx(four["compute"])
    assert four["exchange"] > two["exchange"]


def test_a_pilot_with_more_copies_has_done_more_for_the_same_seconds():
    both = replace(TRIAL, copies=2)
    assert cores.step(both, HELD, 2)["update"] < 0.08
    assert cores.step(both, replace(HELD, copies=2), 2)["update"] == pytest.approx(0.08)


def test_threads_of_a_replica_take_cores_too():
    assert cores.step(replace(TRIAL, threads=2), HELD, 2)["compute"] == 8 * 0.6


def test_an_update_that_is_shared_takes_less_and_copies_take_more():
    one, two = (cores.updated(TRIAL, HELD, n) for n in (1, 2))
    assert one / 2 < two < one
    assert cores.updated(TRIAL, replace(HELD, copies=2), 2) > two
    assert cores.updated(TRIAL, replace(HELD, strategy="fast"), 2) == cores.updated(TRIAL, replace(HELD, copies=1), 1)


def test_partial_sums_are_added_up_by_their_owners():
    few, many = (cores.exchanged(TRIAL, HELD, n) for n in (1, 3))
    assert 3 * many > few  # each adds a third, of five partial sums


def test_islands_are_carried_whole():
    held = replace(HELD, islands=4, strategy="diloco")
    assert cores.computing(TRIAL, held, 3) == pytest.approx(finish([0.6 * 2, 0.6 * 2, 0.6 * 4], 2))
