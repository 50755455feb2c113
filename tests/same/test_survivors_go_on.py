"""Whoever dies, and when: the rest go on to the model of the undisturbed run, and the journal has each step once."""

import json
import os
import signal
from pathlib import Path

import pytest

from samestep.launch.local import Local
from samestep.recipe.load import dump
from samestep.recover import journal
from samestep.recover.journal import Journal
from samestep.verbs import room
from samestep.verbs.audit import audit, clean
from samestep.verbs.prepare import prepare
from samestep.verbs.train import Summary, execute, opening

RECIPE = Path("recipes/tiny.yaml").resolve()
STEPS = 12
CHANGES = {
    "steps": STEPS,
    "recover.checkpoint_every": 4,
    "recover.digest_every": 1,
    "evaluate.every": 3,
    "sync.state": "mirrored",
}
ALONE = {"run.replace": False}


class Killer:
    """Kills replicas by the events of a run: `plan` says after which step, as they are told of, which ranks."""

    def __init__(self, plan, number=signal.SIGKILL):
        self.plan, self.number, self.pids = dict(plan), number, {}

    def __call__(self, event):
        if event["event"] == "started":
            self.pids[event["rank"]] = event["pid"]
        if event["event"] == "step":
            for rank in self.plan.pop(event["step"], ()):
                os.kill(self.pids[rank], self.number)


def lived(folder, plan, replicas=3, hears=None, **changes):
    """The summary and the events of a run whose replicas are killed. hears: called with each event too."""
    settings = CHANGES | {"run.replicas": replicas} | changes
    prepared = prepare(RECIPE, [f"{key}={json.dumps(value)}" for key, value in settings.items()], lambda line: None)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(prepared.recipe))
    summary = Summary(str(folder))
    with Journal(folder / "journal.jsonl") as written:
        written.write(opening(prepared, 0.0))
        execute(prepared.job("train", folder), Local(), written, [summary.add, Killer(plan), *filter(None, [hears])])
    return summary, journal.read(folder / "journal.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return lived(tmp_path_factory.mktemp("whole") / "run", {}, replicas=1)


def same(found, whole):
    """Of two runs the digests, curves and evaluations; the journal of the first has each step, once a life."""
    (summary, events), (wanted, all_events) = found, whole
    assert summary.digest == wanted.digest and summary.steps == wanted.steps
    for kind, keys in (("step", ("step", "loss", "rows", "digest")), ("evaluated", ("step", "loss", "best"))):
        curves = [
            {e["step"]: [e.get(key) for key in keys] for e in run if e["event"] == kind} for run in (events, all_events)
        ]
        assert curves[0] == curves[1] != {}
    assert clean(audit(Path(summary.run), lambda line: None))


def formed(events):
    return [(e["replicas"], e["restored"]) for e in events if e["event"] == "formed"][1:]


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("state", ["mirrored", "replicated"])
def test_whichever_replica_is_killed_the_others_go_on(tmp_path, undisturbed, rank, state):
    found = lived(tmp_path / "run", {5: [rank]}, **{"sync.state": state}, **ALONE)
    same(found, undisturbed)
    assert formed(found[1]) == [(2, False)]


def test_several_deaths_one_after_the_other_leave_one_replica_that_ends_the_run(tmp_path, undisturbed):
    found = lived(tmp_path / "run", {2: [3], 5: [0], 8: [0]}, replicas=4, **ALONE)
    same(found, undisturbed)
    assert formed(found[1]) == [(3, False), (2, False), (1, False)]


def test_what_nobody_holds_any_more_comes_from_the_checkpoint(tmp_path, undisturbed):
    found = lived(tmp_path / "run", {10: [1, 2]}, **ALONE)
    same(found, undisturbed)
    assert formed(found[1])[-1] == (1, True)
    (resumed,) = [e for e in found[1] if e["event"] == "resumed"]
    assert resumed["step"] in (4, 8)


def test_before_the_first_checkpoint_it_comes_from_the_seed(tmp_path, undisturbed):
    found = lived(tmp_path / "run", {2: [1]}, **{"sync.state": "sharded"}, **ALONE)
    same(found, undisturbed)
    assert formed(found[1]) == [(2, True)]
    assert [e["step"] for e in found[1] if e["event"] == "resumed"] == [0]


@pytest.mark.parametrize(("free", "state"), [(10**6, "sharded"), (10**10, "replicated")])
def test_what_auto_decides_by_the_free_memory_is_what_all_replicas_do(tmp_path, undisturbed, monkeypatch, free, state):
    monkeypatch.setattr(room, "free", lambda: free)
    found = lived(tmp_path / "run", {2: [1]}, **{"sync.state": "auto"}, **ALONE)
    same(found, undisturbed)
    assert found[1][0]["state"] == state and "of moments" in found[1][0]["state_reason"]
    assert formed(found[1]) == [(2, state == "sharded")]


def test_one_that_is_lost_is_replaced_while_the_others_go_on(tmp_path):
    enough = {"steps": 150, "recover.checkpoint_every": 50, "recover.digest_every": 25, "evaluate.every": 0}
    found = lived(tmp_path / "run", {2: [1]}, **enough)
    assert formed(found[1]) == [(2, False), (3, False)]
    same(found, lived(tmp_path / "whole", {}, replicas=1, **enough))
