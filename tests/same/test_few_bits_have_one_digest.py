"""Law 1 for wire formats of few bits: replicas, deaths, joins and resumes change nothing of what is rounded."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from samestep.recover import checkpoint
from samestep.verbs.resume import resume
from tests.same.test_survivors_go_on import formed, lived, same

SHORT = {"steps": 8, "recover.checkpoint_every": 4, "evaluate.every": 4}
STREAMING = {
    "sync.strategy": "diloco",
    "sync.diloco.every": 4,
    "sync.diloco.fragments": 2,
    "sync.diloco.overlap": 1,
    "sync.diloco.mix": 0.5,
}
KINDS = {
    "int4": {"sync.wire": "int4"},
    "int8": {"sync.wire": "int8"},
    "bfloat16": {"sync.wire": "bfloat16"},
    "float32, int4": {"sync.weights": "int4", "sync.state": "mirrored"},
    "streaming int4": {"sync.wire": "int4", **STREAMING},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """The settings, and the undisturbed run on one replica."""
    settings = SHORT | KINDS[request.param]
    return settings, lived(tmp_path_factory.mktemp("whole") / "run", {}, replicas=1, **settings)


@pytest.mark.slow
def test_three_replicas_come_to_the_model_of_one(kind, tmp_path):
    settings, whole = kind
    same(lived(tmp_path / "run", {}, **settings), whole)


@pytest.mark.slow
def test_a_checkpoint_is_gone_on_from_on_another_number_of_replicas(kind, tmp_path):
    _, (whole, _) = kind
    run = tmp_path / "run"
    shutil.copytree(whole.run, run, ignore=shutil.ignore_patterns("model", "logs", "best"))
    shutil.rmtree(checkpoint.folder_of(run / checkpoint.FOLDER, 8))
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    end = next(at for at, line in enumerate(lines, 1) if b'"event":"checkpoint"' in line and b'"step":4' in line)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:end]))
    found = resume(run, ["run.replicas=3"], "local", Console(quiet=True))
    assert (found.digest, found.steps) == (whole.digest, whole.steps)


@pytest.mark.slow
def test_a_death_goes_back_to_the_checkpoint_where_something_was_rounded_off(kind, tmp_path):
    settings, whole = kind
    found = lived(tmp_path / "run", {6: [1]}, **settings, **{"run.replace": False})
    same(found, whole)
    assert formed(found[1]) == [(2, settings.get("sync.wire") is not None)]


@pytest.mark.slow
def test_one_that_joins_is_handed_what_was_rounded_off(tmp_path):
    enough = {"steps": 150, "recover.checkpoint_every": 50, "recover.digest_every": 25, "evaluate.every": 0}
    enough["sync.wire"] = "int4"
    found = lived(tmp_path / "run", {2: [1]}, **enough)
    assert formed(found[1]) == [(2, True), (3, False)]
    same(found, lived(tmp_path / "whole", {}, replicas=1, **enough))


def test_the_kinds_of_a_checkpoint_are_all_there(tmp_path):
    summary, _ = lived(tmp_path / "run", {}, replicas=2, steps=4, **{"sync.wire": "int4", "lanes": 2})
    folder = checkpoint.folder_of(Path(summary.run) / checkpoint.FOLDER, 4)
    kinds = ["weights", "moment0", "moment1", "master", "lane0_feedback", "lane1_feedback"]
    assert checkpoint.verify(folder).kinds == kinds
