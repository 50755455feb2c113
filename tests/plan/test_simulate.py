"""Runs in simulated time: by hand where one thing happens, by laws where many do."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data import order
from samestep.errors import RecipeError
from samestep.plan.failures import DAY, HOUR, Blow, Hazards
from samestep.plan.restart import Restart
from samestep.plan.simulate import Price, drawn, every, outcome, quantile, simulate, summary
from samestep.plan.survivors import Survivors
from samestep.plan.world import Setup
from samestep.recover.protocol import AllWaiting
from samestep.sync import tree

HOURLY = Setup(10, 10.0, days=2 / 24, lanes=160, save=50.0, save_every=1000.0, detect=5.0, restart=100.0)
STORM = Hazards(2.0, 1.0, 2.0, replace=900.0)  # of each device, a day


def lost(*places, at, seconds):
    return Blow(at, "failure", range(places[0], places[-1] + 1), seconds)


def after(policy, setup, *blows, price=()):
    world = policy(setup, blows, price, every(setup, "restart"))
    world.run()
    return outcome(world, policy.__name__.lower(), 0)


def test_without_failures_only_saves_cost_time():
    for policy in (Restart, Survivors):
        found = after(policy, HOURLY)
        assert found.steps == 690 and found.hours["lost"] == pytest.approx(0, abs=1e-9)  # 6 x (100 steps, 50 s), 900 s
        assert found.hours["saving"] == pytest.approx(10 * 6 * 50 / HOUR)


def test_a_restart_costs_what_was_not_saved_and_until_all_are_there_again():
    found = after(Restart, HOURLY, lost(3, at=2015.0, seconds=200.0))
    # saved after 100 steps, at 1,050 s; steps until 2,010, and half of one, are lost; 10 machines at first, then 9
    assert found.hours["lost"] == pytest.approx(10 * (965 + 5) / HOUR)  # the last step is open at the end
    assert found.hours["detecting"] == pytest.approx(9 * 5 / HOUR)
    assert found.hours["waiting"] == pytest.approx(9 * 195 / HOUR)
    assert found.hours["restarting"] == pytest.approx(10 * 100 / HOUR)
    assert found.hours["down"] == pytest.approx(200 / HOUR)
    assert found.restores == 1 and found.steps == 100 + _steps(7200 - 2315)


def _steps(seconds):
    """In so many seconds, from a checkpoint."""
    saves, rest = divmod(seconds, 1050)
    return int(100 * saves + min(100, rest // 10))


def test_a_spare_takes_the_place_at_once():
    found = after(Restart, replace(HOURLY, spares=1), lost(3, at=2015.0, seconds=200.0))
    assert found.hours["waiting"] == 0 and found.steps == 100 + _steps(7200 - 2120)


def test_survivors_lose_the_open_step_and_carry_the_lanes_until_the_next_one_joins():
    setup = replace(HOURLY, save_every=1e6, form=7.0, join=30.0)
    found = after(Survivors, setup, lost(3, at=2015.0, seconds=200.0))
    assert found.restores == 0 and found.generations == 3
    # 2,027 s: nine go on, of which one has 18 lanes: 11.25 s a step. The new one is there at 2,215, in the 17th of them
    assert found.hours["uneven"] == pytest.approx(17 * (9 * 11.25 - 10 * 10) / HOUR)
    again = 2027 + 17 * 11.25
    assert found.hours["joining"] == pytest.approx((again - 2215 + 0) / HOUR)
    assert found.hours["forming"] == pytest.approx((9 * 7 + 10 * 37) / HOUR)
    assert found.hours["detecting"] == pytest.approx(9 * 5 / HOUR)
    done, left = divmod(7200 - again - 37, 10)
    assert found.steps == 201 + 17 + done and found.hours["lost"] == pytest.approx(10 * (5 + left) / HOUR)


def test_spares_of_survivors_compute_and_so_a_loss_slows_nobody_down():
    setup = replace(HOURLY, spares=1, save_every=1e6, lanes=20)
    found = after(Survivors, setup, lost(3, at=2015.0, seconds=1e9))
    assert found.steps == 201 + int((7200 - 2015 - 5 - 10) / 10)


@pytest.mark.parametrize(("places", "restores"), [((3,), 0), ((3, 4), 1)])
def test_what_two_neighbours_held_is_restored_where_both_are_lost(places, restores):
    found = after(Survivors, replace(HOURLY, copies=2), lost(*places, at=2015.0, seconds=200.0))
    assert found.restores == restores
    assert after(Survivors, replace(HOURLY, copies=None), lost(*places, at=2015.0, seconds=200.0)).restores == 0


def test_where_all_are_lost_the_checkpoint_is_left():
    for policy in (Restart, Survivors):
        found = after(policy, HOURLY, lost(*range(10), at=2015.0, seconds=200.0))
        assert found.restores == 1 and 100 < found.steps < 690 - 90


def test_one_that_is_lost_while_the_others_form_makes_them_form_again():
    setup = replace(HOURLY, save_every=1e6, form=60.0)
    found = after(Survivors, setup, lost(3, at=2015.0, seconds=1e9), lost(7, at=2040.0, seconds=1e9))
    assert found.generations == 3 and found.restores == 0
    assert found.steps == 201 + int((7200 - 2040 - 5 - 60) / 12.5)  # 8 replicas: 20 lanes each


def test_one_that_is_let_in_holds_nothing_before_the_generation_has_formed():
    said = []

    class Heard(Survivors):
        def tell(self, event):
            said.append(event)
            super().tell(event)

    setup = replace(HOURLY, save_every=1e6, form=7.0, join=30.0)
    after(Heard, setup, lost(3, at=2015.0, seconds=200.0), lost(7, at=2230.0, seconds=1e9))
    waits = [(event.replicas, event.held, event.step) for event in said if isinstance(event, AllWaiting)]
    first, rest = tuple(n for n in range(10) if n != 3), tuple(n for n in range(10) if n not in (3, 7))
    assert waits == [(first, 1, 201), (first, 2, 218), (rest, 2, 218), ((10,), -1, -1)]


def test_the_replacement_of_a_slow_replica_is_as_fast_as_the_others():
    slow, gone = Blow(1995.0, "slowdown", range(2, 3), 1e9), lost(2, at=2016.0, seconds=0.0)
    found = after(Survivors, replace(HOURLY, save_every=1e6), slow, gone)
    assert found.hours["slow"] == pytest.approx(10 * 5 / HOUR)  # one step


def test_a_slow_spare_that_stands_by_holds_nobody_up():
    slow = Blow(1995.0, "slowdown", range(10, 11), 1000.0)
    assert after(Restart, replace(HOURLY, spares=1), slow).hours["slow"] == 0


def test_a_slow_replica_holds_all_up_from_the_next_step_on():
    slow = Blow(1995.0, "slowdown", range(2, 3), 1000.0)
    for policy in (Restart, Survivors):
        found = after(policy, replace(HOURLY, save_every=1e6), slow)
        assert found.steps == 200 + 67 + int((7200 - 2000 - 67 * 15) / 10)
        assert found.hours["slow"] == pytest.approx(67 * 10 * 5 / HOUR)


def test_production_terms_end_a_run_whose_step_is_lost_three_times():
    blows = [lost(place, at=2001.0 + 10 * place, seconds=1e9) for place in (0, 3, 6)]
    assert not after(Survivors, replace(HOURLY, form=1000.0, save_every=1e6), *blows).ended
    found = after(Survivors, replace(HOURLY, form=1000.0, save_every=1e6, deaths=3), *blows)
    assert found.ended and found.hours["ended"] > 0 and found.steps == 200


def test_only_machines_that_are_there_are_paid():
    price = (2.0, 3.0)
    whole = after(Restart, HOURLY, price=price)
    assert whole.dollars == pytest.approx(10 * (2 + 3))
    found = after(Restart, HOURLY, lost(3, at=3000.0, seconds=1200.0), price=price)
    assert found.dollars == pytest.approx(50 - 600 / HOUR * (2 + 3))


@pytest.mark.parametrize("policy", ["restart", "survivors"])
def test_the_same_seed_gives_the_same_run(policy):
    setup = Setup(40, 20.0, days=2, hazards=STORM)
    one, again, other = (simulate(setup, policy, seed, Price(2.0, 0.3)) for seed in (1, 1, 2))
    assert one == again and one.curve != other.curve and one.dollars != other.dollars


@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([0, 3]),
    st.sampled_from(["restart", "survivors"]),
)
def test_all_device_time_is_in_the_books_and_each_step_is_committed_once(seed, together, copies, spares, policy):
    setup = Setup(12, 20.0, 0.5, 3, spares, exchange=2.0, copies=copies, hazards=replace(STORM, together=together))
    policies = {"restart": Restart, "survivors": Survivors}
    world = policies[policy](setup, *drawn(setup, seed, Price()), every(setup, policy))
    world.run()
    assert math.fsum(world.books.values()) == pytest.approx(setup.places * setup.seconds, rel=1e-9)
    assert min(world.books.values()) >= -1e-6
    stops = [0, *(stop for _, stop, _ in world.stretches)]
    assert [first for first, _, _ in world.stretches] == stops[:-1] and stops[-1] == world.step
    computed = sum(
        (stop - first) * (192 * setup.lane_seconds + min(members, 12) * 2.0) for first, stop, members in world.stretches
    )
    assert world.books["useful"] == pytest.approx(computed)


def test_what_survivors_commit_reads_each_row_once_by_the_production_order():
    setup = Setup(5, 600.0, days=1, lanes=8, hazards=Hazards(20.0, replace=2000.0))
    world = Survivors(setup, *drawn(setup, 3, Price()), every(setup, "survivors"))
    world.run()
    rows, shape, read = 8 * 2 * world.step, (8, 1, 2), Counter()
    for first, stop, members in world.stretches:
        for step in range(first, stop):
            dealt = order.rows_of_step(7, step, rows, shape)
            for span in tree.spans(8, members):
                read.update(np.ravel(dealt[span.start : span.stop]).tolist())
    assert len({members for _, _, members in world.stretches}) > 2
    assert read == Counter(range(rows))


def test_survivors_lose_less_than_a_restart_does_at_the_size_of_llama_3():
    setup = Setup(512, 20.0, devices=32, lanes=8192, days=10)
    found = {policy: simulate(setup, policy, 1) for policy in ("restart", "survivors")}
    assert found["survivors"].blows == found["restart"].blows == pytest.approx(77, abs=25)
    assert found["survivors"].goodput > 0.95 > found["restart"].goodput > 0.7


def test_percentiles_lie_between_the_values():
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0, 0.25, 0.5, 1)] == [1.0, 1.5, 2.0, 3.0]
    setup = Setup(40, 20.0, days=2, hazards=STORM)
    found = summary([simulate(setup, "survivors", seed) for seed in range(5)])
    for figure in found.values():
        assert figure["p5"] <= figure["p50"] <= figure["p95"]
    assert found["goodput"]["p5"] < found["goodput"]["p95"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"replicas": 0}, "at least one replica"),
        ({"exchange": 20.0}, "cannot hold an exchange"),
        ({"lanes": 4}, "4 lanes are too few for 8 replicas"),
        ({"save": -1.0}, "below 0"),
    ],
)
def test_a_setup_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(RecipeError, match=said):
        Setup(**({"replicas": 8, "step_seconds": 20.0} | wrong))


def test_survivors_save_as_seldom_as_they_need_it():
    setup = Setup(16_384, 20.0)
    assert every(setup, "restart") == pytest.approx(798, abs=2)
    assert every(setup, "survivors") == DAY
    assert every(replace(setup, hazards=Hazards(together=8)), "survivors") == every(setup, "restart")
    assert every(replace(setup, save_every=100.0), "survivors") == 100
