"""Where a replica's time goes, by a clock that the test holds."""

import os
from pathlib import Path

import pytest

from samestep.launch.local import Local
from samestep.replica.board import Phase
from samestep.replica.spent import OFTEN, SHARE, Spent, memory
from samestep.verbs.prepare import prepare
from samestep.verbs.program import program, terms

RECIPE = Path("recipes/tiny.yaml").resolve()


def test_each_second_is_in_the_phase_that_it_was_spent_in():
    spent = Spent(10.0)
    spent.begin(0)
    for phase, now in ((Phase.DATA, 13.0), (Phase.FORWARD, 13.5), (Phase.DATA, 15.0), (Phase.UPDATE, 15.25)):
        spent.enter(phase, now)
    seconds = {"start": 3.0, "data": 0.75, "forward": 1.5, "update": 0.75}
    assert spent.tell(4, 16.0) == {"event": "spent", "step": 4, "steps": 4, "seconds": seconds}
    assert spent.tell(5, 17.0) == {"event": "spent", "step": 5, "steps": 1, "seconds": {"update": 1.0}}


@pytest.mark.parametrize(("told", "begins", "steps"), [(None, 80, 2), (50, 80, 32), (81, 40, 42)])
def test_steps_are_counted_from_where_this_replica_has_begun(told, begins, steps):
    spent = Spent(0.0)
    if told is not None:
        spent.begin(0)
        spent.tell(told, 1.0)
    spent.begin(begins)
    assert spent.tell(82, 2.0)["steps"] == steps


def test_a_long_run_tells_less_often():
    spent = Spent(0.0)
    assert not spent.due(OFTEN - 0.1) and spent.due(OFTEN)
    spent.tell(1, 1000.0)
    assert not spent.due(1000.0 + OFTEN) and spent.due(1000.0 / (1 - SHARE) + 0.1)


def test_memory_is_that_of_this_process():
    before = memory()
    block = bytearray(os.urandom(1)) * 50_000_000
    after = memory()
    assert 45e6 < after["memory"] - before["memory"] < 60e6 and after["peak"] >= after["memory"]
    del block
    assert memory()["peak"] >= after["peak"] - 1e6  # which Linux brings up to date now and then


def test_every_replica_of_a_run_tells_where_its_time_went(tmp_path):
    prepared = prepare(RECIPE, ["steps=3", "run.replicas=2"], lambda line: None)
    job, events = prepared.job("train", tmp_path), []
    Local().run(program(job), terms(job.recipe), events.append)
    told = [event for event in events if event["event"] == "spent"]
    assert {event["rank"] for event in told} == {0, 1}
    for rank in (0, 1):
        mine = [event for event in told if event["rank"] == rank]
        assert sum(event["steps"] for event in mine) == 3
        phases = {phase for event in mine for phase in event["seconds"]}
        assert {"start", "data", "forward", "backward", "exchange", "update", "evaluate"} <= phases
        assert mine[-1]["step"] == 3 and mine[-1]["bytes_sent"] > 0 and 5e7 < mine[-1]["memory"] <= mine[-1]["peak"]
