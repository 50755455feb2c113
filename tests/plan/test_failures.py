"""What is drawn follows from the seed and has the rates that were asked for; what is expected follows from them."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import RecipeError
from samestep.plan.failures import DAY, LLAMA3, Hazards, blows, goodput, longest, prices, save_every
from samestep.plan.simulate import simulate
from samestep.plan.world import Setup

MINUTE = 60.0


def test_the_same_seed_draws_the_same_and_another_seed_other_failures():
    hazards = Hazards(0.5, 0.5, 0.5)
    one, again, other = (blows(hazards, 20, 1, 10 * DAY, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert [blow.at for blow in one] == sorted(blow.at for blow in one) and one[-1].at < 10 * DAY
    assert {blow.kind for blow in one} == {"failure", "preemption", "slowdown"}


def test_as_many_stops_are_drawn_as_llama_3_had():
    counts = [len(blows(Hazards(), 16_384, 1, 54 * DAY, seed)) for seed in range(40)]
    assert statistics.fmean(counts) == pytest.approx(419, abs=4 * math.sqrt(419 / 40))
    assert pytest.approx(419 / 16_384 / 54) == LLAMA3


def test_a_replica_of_many_devices_fails_as_often_as_they_do_together():
    whole = len(blows(Hazards(0.5), 10, 8, 100 * DAY, 1))
    assert whole == pytest.approx(0.5 * 10 * 8 * 100, rel=0.1)


def test_a_host_is_lost_as_a_whole():
    found = blows(Hazards(1.0, together=8), 20, 1, 50 * DAY, 1)
    assert {(blow.places.start, blow.places.stop) for blow in found} == {(0, 8), (8, 16), (16, 20)}


def test_times_until_a_replacement_are_exponential_about_their_mean():
    waits = [blow.seconds for blow in blows(Hazards(10.0, replace=600.0), 100, 1, 10 * DAY, 1)]
    assert statistics.fmean(waits) == pytest.approx(600, rel=0.05)
    assert statistics.pstdev(waits) == pytest.approx(600, rel=0.05)


def test_spot_prices_swing_about_their_mean_and_fixed_ones_do_not():
    found = prices(2.0, 0.3, 100_000, 1)
    assert found == prices(2.0, 0.3, 100_000, 1) != prices(2.0, 0.3, 100_000, 2)
    assert statistics.fmean(found) == pytest.approx(2.0, rel=0.03) and min(found) > 0
    assert statistics.pstdev(map(math.log, found)) == pytest.approx(0.3, rel=0.1)
    assert set(prices(2.0, 0.0, 50, 1)) == {2.0}


@pytest.mark.parametrize(("mtbf", "minutes"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_the_best_time_between_two_saves_is_what_daly_publishes(mtbf, minutes):
    """Figures 3 to 5 of Daly 2006: a save takes 5 minutes."""
    assert save_every(5 * MINUTE, mtbf * MINUTE) == pytest.approx(minutes * MINUTE, rel=0.01)


def test_saves_that_take_longer_than_a_run_lasts_are_as_seldom_as_failures():
    assert save_every(600, 200) == 200 and save_every(30, math.inf) == math.inf


def test_the_one_with_most_lanes_holds_all_others_up():
    assert (longest(1600, 100), longest(1600, 99), longest(100, 99)) == (16, 18, 2)


def test_without_failures_nothing_is_lost():
    found = goodput(1000, 20, 0.0, 30, 300)
    assert (found.restart, found.mtbf) == (1.0, math.inf) and 0.999 < found.survivors < 1


@given(st.integers(1, 20_000), st.floats(1, 60), st.floats(1e-6, 1e-2), st.floats(1, 300), st.floats(60, 3600))
def test_what_is_expected_is_a_share_and_falls_with_the_failures(replicas, step, rate, save, restart):
    few = goodput(replicas, step, rate, save, restart)
    many = goodput(replicas, step, 2 * rate, save, restart)
    for one, other in ((few.restart, many.restart), (few.survivors, many.survivors)):
        assert 0 <= other <= one <= 1


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"step_seconds": 0}, {"save_seconds": -1}])
def test_numbers_that_cannot_be_are_refused(wrong):
    numbers = {"replicas": 8, "step_seconds": 1, "failures_per_device_day": 0.1, "save_seconds": 1}
    with pytest.raises(RecipeError, match="no number below 0"):
        goodput(**(numbers | {"restart_seconds": 1} | wrong))


@pytest.mark.parametrize("rate", [0.002, 0.02, 0.06])
@pytest.mark.parametrize("spares", [0, 4])
def test_what_is_expected_is_what_is_simulated(rate, spares):
    setup = Setup(200, 20.0, days=60, spares=spares, hazards=Hazards(rate))
    found = goodput(200, 20.0, rate, setup.save, setup.restart, spares=spares)
    for policy in ("restart", "survivors"):
        progress = statistics.fmean(simulate(setup, policy, seed).progress for seed in range(4))
        assert progress == pytest.approx(getattr(found, policy), abs=0.02), policy
