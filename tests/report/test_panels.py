"""What the charts of a report show, at the places where it belongs."""

import pytest

from samestep.report.panels import charts
from samestep.report.read import read

KEYS = ["loss", "tokens_per_second", "gradient_norm", "learning_rate", "bytes", "phases", "memory"]


def panel(drawn, key):
    return next(each for each in drawn.panels if each.key == key)


def test_every_chart_has_the_same_columns(made):
    drawn = charts(read(made.lived(100)))
    assert [each.key for each in drawn.panels] == KEYS
    assert drawn.steps == list(range(1, 101)) and (drawn.xs[0], drawn.xs[-1]) == (0, 1000)
    assert all(len(line.values) == len(line.ys) == 100 for each in drawn.panels for line in each.lines)


def test_what_was_not_measured_has_no_chart(made):
    assert [each.key for each in charts(read([made.opened(), made.step(1), made.step(2)])).panels] == KEYS[:4]
    assert charts(read([])).panels == []


def test_the_cursor_shows_the_mean_of_a_column_and_how_far_it_reaches(made):
    steps = [made.step(n, loss=1.0 if n % 2 else 3.0) for n in range(1, 1201)]
    loss = panel(charts(read([made.opened(), *steps])), "loss").lines[0]
    assert loss.values[0] == "2.0000 (1.0000 to 3.0000)" and loss.area


def test_the_held_out_loss_is_that_of_the_last_evaluation(made):
    events = [made.opened(), *map(made.step, range(1, 7)), {"event": "evaluated", "step": 0, "loss": 9.0}]
    events += [{"event": "evaluated", "step": n, "loss": float(n)} for n in (2, 5)]
    held = panel(charts(read(events)), "loss").lines[-1]
    assert held.values == ["9.0000", "2.0000", "2.0000", "2.0000", "5.0000", "5.0000"]


def test_another_run_is_drawn_at_its_own_steps(made):
    theirs = read([made.opened(), *(made.step(n, loss=7.0) for n in (1, 2))])
    drawn = charts(read([made.opened(), *map(made.step, range(1, 5))]), theirs, "them")
    other, ours = panel(drawn, "loss").lines
    assert other.name == "loss of them" and other.values == ["7.0000", "7.0000", "", ""] and ours.values[3] == "3.0000"


def test_areas_of_phases_lie_on_each_other(made):
    lines = panel(charts(read(made.lived(50))), "phases").lines
    assert [line.name for line in lines] == ["forward", "backward", "exchange", "update", "reading data"]
    tops = [line.ys[20] for line in lines]
    assert tops == sorted(tops, reverse=True) and lines[0].values[20] == "100 ms"


def test_a_pause_is_cut_at_the_top_and_said(made):
    events = [made.opened(), made.formed(1), made.started(0, [0, 8]), *map(made.step, range(1, 31))]
    accounts = [made.spent(0, n, 1, **({"forward": 500.0} if n == 9 else {})) for n in range(1, 31)]
    found = panel(charts(read([*events, *accounts])), "phases")
    assert found.note == "1 cut at the top" and found.lines[0].values[8] == "8 min 20 s" and found.lines[-1].ys[4] < 30


@pytest.mark.parametrize(("replicas", "names"), [(2, ["replica 0", "replica 1"]), (9, ["least", "most"])])
def test_many_replicas_are_two_lines_of_memory(made, replicas, names):
    events = [made.opened(), made.formed(replicas), *(made.started(rank, [rank, rank + 1]) for rank in range(replicas))]
    events += [
        *map(made.step, range(1, 5)),
        *(made.spent(rank, 4, 4) | {"memory": 1e8 * (rank + 1)} for rank in range(replicas)),
    ]
    lines = panel(charts(read(events)), "memory").lines
    assert [line.name for line in lines] == names
    assert [line.values[0] for line in lines] == ["100 MB", "900 MB" if replicas == 9 else "200 MB"]


def test_marks_are_where_they_happened_and_do_not_cover_each_other(made):
    gone = made.formed(1, 50, 2, "a death")
    saved = [{"event": "checkpoint", "step": n, "folder": "f"} for n in range(1, 101)]
    drawn = charts(read([made.opened(), made.formed(2), *map(made.step, range(1, 10_001)), gone, *saved]))
    assert [(mark.kind, round(x)) for x, mark in drawn.lines] == [("failure", 5)]
    assert [mark.step for _, mark in drawn.marks if mark.kind == "checkpoint"] == [1, 51]
