"""The figures of a report."""

import pytest

from samestep.plan.cost import Price
from samestep.report import tables
from samestep.report.read import read


def test_the_tiles_are_what_one_looks_at_first(made):
    found = {name: (figure, aside) for name, figure, aside in tables.tiles(read(made.lived(100)))}
    assert found == {
        "loss": ("2.0400", "6.0000 at first"),
        "held-out loss": ("2.1000", "1.5000 bits a byte"),
        "steps": ("100", ""),
        "tokens a second": ("2 k", "of a usual step"),
        "time": ("1 min 0 s", ""),
        "replicas": ("2", "on 2 hosts"),
    }


@pytest.mark.parametrize(("sizes", "told"), [([3], "3"), ([3, 3, 2, 3], "3, 2, 3"), ([4, 3, 4, 3, 2], "2 to 4")])
def test_the_replicas_are_those_that_the_run_has_had(made, sizes, told):
    formed = [made.formed(size, at, at + 1, "so") for at, size in enumerate(sizes)]
    assert tables.tiles(read([made.opened(), *formed]))[-1][1] == told


def test_plan_and_measured_stand_beside_each_other(made):
    parts = {"forward": 0.09, "backward": 0.2, "sums": 0.01, "update": 0.06}
    choice = {"seconds": 0.36, "bytes_sent": 900, "parts": parts}
    events = [made.opened(), {"event": "piloted", "choice": choice}, made.formed(1), made.started(0, [0, 8])]
    found = tables.predicted(read([*events, *map(made.step, range(1, 5)), made.spent(0, 4, 4)]))
    assert found[1:] == [
        ("a step", "360 ms", "500 ms", "-28 %"),
        ("forward", "90 ms", "100 ms", "-10 %"),
        ("backward", "200 ms", "200 ms", "+0 %"),
        ("exchange and update", "70 ms", "70 ms", "+0 %"),
        ("sent a step", "900 B", "1 kB", "-10 %"),
    ]
    assert tables.predicted(read(made.lived(10))) == []


def test_cost_follows_from_hours_of_replicas(made):
    history = read([made.opened(), made.formed(4), *(made.step(n, seconds=900.0) for n in range(1, 9))])
    found = {name: rest for name, *rest in tables.scaling(history, Price(2.5, "a list", "2026-09-20"))}
    assert found["replica hours"] == ["8", "8 in steps"]
    assert found["cost of the run"] == ["$20.00", "$2.5 a replica and hour (a list, 2026-09-20)"]
    assert found["cost of a million tokens"][0] == "$2,500"
    assert "cost of the run" not in dict(row[:2] for row in tables.scaling(history, None))


def test_what_is_paid_for_is_the_whole_time_from_start_to_end(made):
    steps = [made.step(n, seconds=900.0) for n in range(1, 9)]
    history = read([made.opened(), made.formed(4), *steps, {"event": "finished", "seconds": 10800.0, "digest": ""}])
    assert tables.paid(history) == (8.0, 12.0)


def test_the_journal_s_own_proof_finds_rows_that_are_lost_or_read_twice(made):
    whole = [made.opened(), *map(made.step, range(1, 17))]
    assert tables.audit(read(whole)) == "16 steps, 64 rows: 0 lost, 0 repeated"
    assert "4 lost, 4 repeated" in tables.audit(read([*whole[:12], made.step(12, rows=[8, 12]), *whole[13:]]))
    assert "step 3 stands where step 2 was due" in tables.audit(read([*whole[:2], *whole[3:]]))
    assert "does not say" in tables.audit(read([{"event": "opened"}]))


def test_replicas_sources_and_environment_are_listed(made):
    history = read(made.lived(10))
    head, *rows = tables.replicas(history)
    assert head[0] == "replica" and [row[:3] for row in rows] == [
        ("replica 0 on h1", "4", "310 ms"),
        ("replica 1 on h2", "4", "310 ms"),
    ]
    assert tables.sources(history)[1] == ("python-stdlib", "text", "40", "2", "0")
    found = dict(tables.environment(history))
    assert found["torch"] == "2.13.0" and found["hosts"] == "h1 (1 replica) and h2 (1 replica)"
    assert found["began"] == "2023-11-14 22:13 UTC"
    assert tables.replicas(read([])) == tables.sources(read([])) == []
