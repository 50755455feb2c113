"""Sentences follow from numbers, and what is small is not said."""

import pytest

from samestep.report.read import Spent, read
from samestep.report.words import (
    beside,
    by_replica,
    listed,
    number,
    shares,
    speeds,
    stalls,
    steady,
    uneven,
    waits,
    words,
)

USUAL = {"data": 0.1, "forward": 0.2, "backward": 0.4, "exchange": 0.2, "update": 0.1}


def spent(replica, host="h", lanes=4, steps=10, step=10, memory=1e9, **phases):
    seconds = {phase: steps * each for phase, each in (USUAL | phases).items()}
    return Spent(step, steps, replica, host, lanes, seconds, 100, memory, memory)


def test_a_slow_phase_of_one_host_is_named_with_what_it_costs():
    totals = by_replica([spent("r0", "h0"), spent("r1", "h1"), spent("r2", "h2", data=0.3)])
    assert waits(totals, 1.2) == "17 % of each step waits for h2: its data phase is 3 x the others'."


def test_a_slow_replica_on_a_host_of_several_is_named_itself():
    totals = by_replica([spent("replica 0"), spent("replica 1", backward=0.8)])
    assert waits(totals, 1.0) == "40 % of each step waits for replica 1: its backward phase is 2 x the others'."


def test_who_carries_more_lanes_is_not_called_slow():
    totals = by_replica([spent("a", "a", lanes=3), spent("b", "b", lanes=5, backward=0.8)])
    assert waits(totals, 1.0) == "40 % of each step waits for b: it carries 5 lanes, the others 3 at most."


@pytest.mark.parametrize("late", [0.0, 0.02])
def test_what_hardly_waits_is_not_told(late):
    assert waits(by_replica([spent("a"), spent("b", data=0.1 + late)]), 1.0) is None
    assert waits(by_replica([spent("a")]), 1.0) is None


def test_a_pause_of_the_machine_in_one_account_of_many_is_nobody_s_fault():
    told = [spent("a", step=10 * n) for n in range(1, 9)] + [spent("b", step=10 * n) for n in range(1, 8)]
    assert waits(by_replica([*told, spent("b", step=80, forward=90.0)]), 1.0) is None


def test_who_waits_is_told_of_the_longest_stretch_of_one_crew(made):
    crew = [made.formed(2), made.started(0, [0, 4]), made.started(1, [4, 8])]
    events = [made.opened(), *crew, *map(made.step, range(1, 101))]
    events += [made.spent(rank, n, 5) for n in range(5, 101, 5) for rank in (0, 1)]
    events += [made.formed(2, 100, 2, "a death"), *crew[1:], *map(made.step, range(101, 111))]
    events += [made.spent(0, 110, 10), made.spent(1, 110, 10, slow=99.0)]
    history = read(events)
    assert {each.step for each in steady(history)} == set(range(5, 101, 5)) and steady(read([])) == []
    assert not any("waits" in sentence for sentence in words(history))


def test_lanes_that_do_not_split_evenly_are_told():
    totals = by_replica([spent("a", lanes=3), spent("b", lanes=3), spent("c", lanes=2, forward=0.1, backward=0.3)])
    assert "8 lanes do not split evenly over 3 replicas: c carries 2 where others carry 3" in uneven(totals, 1.0)
    assert "another 20 % of each step" in uneven(totals, 1.0)
    assert uneven(by_replica([spent("a"), spent("b")]), 1.0) is None


def test_shares_are_of_all_time_but_the_starts():
    found = shares(by_replica([spent("a", start=50.0), spent("b", start=70.0)]))
    assert sum(found.values()) == pytest.approx(1) and found["backward"] == pytest.approx(0.4)
    assert shares({}) == {}


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ({"exchange": 0.9}, "sync.wire"),
        ({"data": 0.4}, "disk"),
        ({"evaluate": 0.5}, "evaluate.every"),
        ({"save": 0.2}, "checkpoint_every"),
    ],
)
def test_what_takes_much_of_the_time_comes_with_advice(made, phases, told):
    events = [made.opened(), made.formed(1), made.started(0, [0, 8])]
    assert told in " ".join(words(read([*events, made.spent(0, 10, 10, **phases)])))
    assert told not in " ".join(words(read([*events, made.spent(0, 10, 10)])))


def test_long_steps_are_told_with_the_longest():
    seconds = [9.0, *[1.0] * 50, 20.0, 1.0, 31.0]
    told = stalls(list(range(1, 55)), seconds)
    assert told == (
        "2 steps took more than 5 x the usual 1.0 s and cost 49.0 s in all: the longest was step 54 (31.0 s)."
    )
    assert stalls([1, 2, 3], [30.0, 1.0, 1.1]) is None and stalls([], []) is None


def test_a_run_that_slows_down_and_one_whose_memory_grows_are_told(made):
    events = [made.opened(), made.formed(1), made.started(0, [0, 8])]
    events += [made.step(n, seconds=0.5 if n < 91 else 2.0) for n in range(1, 101)]
    events += [made.spent(0, n, 1) | {"memory": 1e9 * (1 + n / 30)} for n in range(1, 31)]
    told = words(read(events))
    assert "The last tenth of the steps ran at 500 tokens/s, 75 % below the median." in told
    assert any("memory of replica 0 grew from 1.13 GB to 2 GB" in sentence for sentence in told)


def test_a_prediction_stands_beside_what_was_measured(made):
    choice = {"seconds": 0.4, "bytes_sent": 1000, "parts": {}, "candidate": ["exact", "float32", ""]}
    told = words(read([made.opened(), {"event": "piloted", "choice": choice}, *map(made.step, range(1, 5))]))
    assert told == ["A step took 500 ms; the pilot had predicted 400 ms, 20 % less."]


def test_scaling_is_told_where_the_run_had_several_sizes(made):
    events = [made.opened(), made.formed(2), *map(made.step, range(1, 6)), made.formed(1, 5, 2, "a death")]
    history = read([*events, *(made.step(n, seconds=0.8) for n in range(6, 9))])
    assert speeds(history) == {1: 1250, 2: 2000}
    assert words(history)[-1] == "2 replicas ran at 2 k tokens/s, 1 at 1.25 k tokens/s: 80 % of linear scaling."


def test_two_runs_are_compared_at_their_sizes():
    assert beside("b", {4: 300.0}, {2: 200.0}) == (
        "1.50 x the tokens/s of b on 4 replicas where it had 2, 75 % of linear scaling."
    )
    assert beside("b", {}, {1: 1.0}) is None


def test_of_nothing_nothing_is_said():
    assert words(read([])) == []


def test_lists_and_numbers_are_read_by_people():
    assert (listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])) == ("a", "a and b", "a, b and c")
    assert [number(value) for value in (None, float("nan"), 2.5, 1.5e-7, 1e6)] == [
        "?",
        "?",
        "2.5000",
        "1.5e-07",
        "1e+06",
    ]
