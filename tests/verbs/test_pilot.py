"""samestep pilot measures on real replicas, and `sync.strategy: auto` takes what it says."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from samestep.plan.choose import CANDIDATES
from samestep.recipe.load import load
from samestep.recover import journal
from samestep.verbs import pilot as verb
from samestep.verbs.train import Summary, lines


@pytest.mark.slow
def test_it_measures_predicts_and_writes_the_recipe(samestep, tiny, tmp_path):
    to = tmp_path / "chosen.yaml"
    result = samestep("pilot", tiny, "--replicas", 2, "--to", to, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["replicas"] == 2 and all(found["measured"][part] > 0 for part in ("forward", "backward", "update"))
    sizes = [size for size, _ in found["measured"]["exchange"]]
    assert sizes == sorted(sizes) and len(sizes) > 3
    strategies = [(each["candidate"][0], each["candidate"][1]) for each in found["predictions"]]
    assert strategies == [each[:2] for each in CANDIDATES]
    sync = load(to, []).sync
    assert [sync.strategy, sync.wire] == found["choice"]["candidate"][:2]


@pytest.mark.slow
def test_what_it_measured_plans_runs_on_this_machine(samestep, tiny, cache, tmp_path):
    """Bytes to the byte, memory nearly. The time of a step needs a quiet machine: benchmarks/plan_here.py."""
    mine, run = f"run.cache={cache}", tmp_path / "run"
    assert samestep("pilot", tiny, mine, "--replicas", 2).code == 0
    planned = samestep("plan", tiny, mine, "--gpu", "here", "--replicas", "3", "--json").json
    assert planned["piloted"] == 2 and planned["steps"] == 12
    (row,) = planned["rows"]
    assert samestep("train", tiny, "--replicas", 3, "--run", run).code == 0
    events = list(journal.read(run / "journal.jsonl"))
    sent = [event["bytes_sent"] for event in events if event["event"] == "step"]
    assert {after - before for before, after in pairwise(sent)} == {row["sent"][0]}
    peak = max(event["peak"] for event in events if event["event"] == "spent")
    assert row["memory"] == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
def test_a_file_that_is_there_is_not_written_over(samestep, tiny, tmp_path):
    to = tmp_path / "mine.yaml"
    to.write_text("steps: 3\n")
    result = samestep("pilot", tiny, "--to", to)
    assert result.code == 2 and f"--to {to} is there already" in result.err and to.read_text() == "steps: 3\n"


@pytest.mark.slow
def test_auto_is_settled_at_the_start_and_recorded(samestep, tiny, tmp_path):
    run = tmp_path / "run"
    result = samestep("train", tiny, "--run", run, "--json", "steps=3", "sync.strategy=auto")
    assert result.code == 0, result.err
    (event,) = (event for event in journal.read(run / "journal.jsonl") if event["event"] == "piloted")
    sync = load(run / "recipe.yaml", []).sync
    assert [sync.strategy, sync.wire] == event["choice"]["candidate"][:2] and event["reason"]
    assert event["reason"] in result.err
    told = json.loads(result.out)
    steps = [each["seconds"] for each in journal.read(run / "journal.jsonl") if each["event"] == "step"]
    assert told["predicted_step_seconds"] == event["choice"]["seconds"]
    assert told["step_seconds"] == pytest.approx(sum(steps[1:]) / 2)


def test_a_run_that_a_pilot_chose_for_tells_how_wrong_it_was():
    summary = Summary("runs/x", predicted_step_seconds=0.5)
    for seconds in (9.0, 0.3, 0.5):
        summary.add({"event": "step", "step": 1, "loss": 1.0, "bytes_sent": 0, "seconds": seconds, "tokens": 8})
    assert "seconds_per_step   0.400  (the pilot predicted 0.500, +25%)" in lines(summary)
    summary.predicted_step_seconds = None
    assert not any("predicted" in line for line in lines(summary))


def test_the_table_marks_what_is_taken():
    event = {"replicas": 4, "forward": 0.1, "backward": 0.2, "update": 1e-9, "pass_": 1e-10, "sizes": [10_000_000]}
    event |= {"coding": {}, "exchange": [[1024, 0.001], [1 << 25, 30.0]]}
    recipe = load(Path("recipes/tiny.yaml"), [])
    found = verb.decided(recipe, event)
    marked = [line for line in verb.lines(found) if "*" in line]
    assert len(marked) == 1 and marked[0].startswith("diloco")
    assert verb.lines(found)[-1].startswith("sync.strategy=diloco sync.wire=")
    assert verb.with_choice(recipe, found).sync.strategy == "diloco"
    other = replace(found, choice=found.predictions[0])
    assert verb.with_choice(recipe, other).sync.strategy == "exact"
