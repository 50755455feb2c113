"""A journal becomes plain numbers."""

import pytest

from samestep.report.read import Mark, hours, read, replicas_at


def test_a_step_has_a_place_in_every_series(made):
    history = read([made.opened(), made.formed(1), made.started(0, [0, 8]), made.step(1), made.step(2, seconds=0.25)])
    assert history.steps == [1, 2]
    assert history.series["loss"] == [6.0, 4.0]
    assert history.series["tokens_per_second"] == [2000, 4000]
    assert history.series["bytes"] == [1000, 1000]
    assert history.status == "not finished" and history.lives == []


def test_bytes_are_those_of_one_process_only(made):
    """After a death rank 0 may be another one, which has sent less or more in all."""
    events = [made.opened(), made.formed(2), made.started(0, [0, 4], pid=7), made.step(1)]
    events += [made.formed(1, 1, 2, "replica 0 was killed"), made.started(0, [0, 8], pid=8, generation=2)]
    history = read([*events, made.step(2, bytes_sent=300), made.step(3, bytes_sent=500)])
    assert history.series["bytes"] == [1000, 300, 200]


def test_what_is_not_there_is_none(made):
    nan = made.step(1, loss=None, seconds=0.0)
    del nan["bytes_sent"]
    history = read([made.opened(), nan])
    assert [history.series[name] for name in ("loss", "tokens_per_second", "bytes")] == [[None], [None], [None]]


def test_steps_that_are_computed_again_count_once_and_their_time_as_lost(made):
    events = [made.opened(), made.formed(2), *map(made.step, range(1, 6)), made.spent(0, 5, 5)]
    events += [{"event": "evaluated", "step": 4, "loss": 3.0}]
    events += [{"event": "resumed", "time": 2e9, "step": 3, "last": 5, "replicas": 3}, made.formed(3)]
    history = read([*events, made.step(4, loss=9.0, seconds=2.0)])
    assert history.steps == [1, 2, 3, 4] and history.series["loss"][-1] == 9.0
    assert (history.again, history.lost, history.held_out, history.spent) == (2, 1.0, [], [])
    assert history.lost_hours == pytest.approx(2 * 1.0 / 3600)
    assert [replicas_at(history, number) for number in (1, 3, 4)] == [2, 2, 3]
    assert hours(history, history.steps, history.series["seconds"]) == pytest.approx((3 * 2 * 0.5 + 3 * 2) / 3600)
    assert history.marks == [Mark(3, "resume", "resumed after step 3; 2 steps were computed again")]


def test_deaths_and_joins_are_marks_with_their_reasons(made):
    gone = made.formed(2, 7, 2, "replica 2 was killed; 2 replicas go on and compute step 8 again")
    back = made.formed(3, 9, 3, "replica 3 has joined; 3 replicas go on and compute step 10")
    history = read([made.opened(), made.formed(3), gone, back])
    assert [(mark.step, mark.kind) for mark in history.marks] == [(7, "failure"), (9, "joined")]
    assert history.marks[0].text == gone["reason"]
    assert history.crews == [(1, 3), (8, 2), (10, 3)]


MARKS = [
    ({"event": "checkpoint", "step": 4, "folder": "f"}, "checkpoint", "checkpoint of step 4"),
    ({"event": "checkpoint", "step": 4, "folder": "f", "refused": "full"}, "checkpoint", "full; it is in f"),
    ({"event": "best", "step": 4, "loss": 2.5}, "best", "2.5"),
    ({"event": "stopped_early", "step": 4, "waited": 3, "best": 2.0}, "end", "3 evaluations"),
    ({"event": "not_finite", "step": 4, "lane": 2, "layer": None}, "failure", "lane 2, the loss"),
    *(({"event": kind, "step": 4, "reason": "why"}, "trouble", "why") for kind in ("silent", "save_failed")),
    ({"event": "unreachable", "host": "h2", "reason": "out of reach"}, "trouble", "out of reach"),
]


@pytest.mark.parametrize(("event", "kind", "text"), MARKS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_happens_is_a_mark_at_its_step_or_the_last_one(made, event, kind, text):
    (mark,) = read([made.opened(), made.step(1), event]).marks
    assert (mark.step, mark.kind) == (event.get("step", 1), kind) and text in mark.text


@pytest.mark.parametrize(
    ("code", "status", "kind"), [(75, "stopped", "end"), (130, "stopped", "end"), (4, "failed", "failure")]
)
def test_how_a_run_ended_is_its_status(made, code, status, kind):
    ended = {"event": "ended", "time": 1.7e9 + 20, "reason": "so it was", "exit_code": code}
    history = read([made.opened(), made.step(1), ended])
    assert (history.status, history.lives, history.marks) == (status, [20.0], [Mark(1, kind, "so it was")])
    again = read([made.opened(), ended, {"event": "resumed", "time": 1.8e9, "step": 0, "last": 1, "replicas": 1}])
    assert again.status == "not finished"


def test_a_replica_is_named_by_its_host_where_there_are_several(made):
    one = read([made.opened(), made.formed(2), made.started(0, [0, 5]), made.started(1, [5, 8]), made.spent(1, 4, 4)])
    two = read(made.lived(10))
    assert [(each.replica, each.lanes) for each in one.spent] == [("replica 1", 3)]
    assert {each.replica for each in two.spent} == {"replica 0 on h1", "replica 1 on h2"}
    assert two.hosts == {"h1": 1, "h2": 1} and one.hosts == {"h0": 2}
    assert (two.status, two.digest, two.lives) == ("finished", "sha256:" + "a" * 64, [60.0])


def test_a_line_of_another_version_is_passed_over(made):
    assert read([{"event": "unheard of"}, {"no": "event"}, made.opened()]).steps == []
