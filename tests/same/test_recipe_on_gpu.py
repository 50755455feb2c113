"""Law 1 on a GPU: one digest at any number of replicas that share it, and whoever dies."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from samestep.launch.local import Local
from samestep.recipe.load import dump
from samestep.recover import journal
from samestep.recover.journal import Journal
from samestep.verbs.prepare import prepare
from samestep.verbs.train import Summary, execute, opening

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: no recipe was trained on one"),
]
RECIPE = Path("recipes/tiny.yaml").resolve()
CHANGES = {
    "steps": 12,
    "compute.device": "cuda",
    "recover.checkpoint_every": 4,
    "recover.digest_every": 1,
    "sync.state": "mirrored",
    "run.replace": False,
}


def lived(folder, replicas, kill=None, **changes):
    """The digest and the events of a run. kill: after this step the last replica is killed."""
    settings = CHANGES | {"run.replicas": replicas} | changes
    prepared = prepare(RECIPE, [f"{key}={json.dumps(value)}" for key, value in settings.items()], lambda line: None)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(prepared.recipe))
    summary, pids = Summary(str(folder)), {}

    def killer(event):
        if event["event"] == "started":
            pids[event["rank"]] = event["pid"]
        if event["event"] == "step" and event["step"] == kill:
            os.kill(pids[replicas - 1], signal.SIGKILL)

    with Journal(folder / "journal.jsonl") as written:
        written.write(opening(prepared, 0.0))
        execute(prepared.job("train", folder), Local(), written, [summary.add, killer])
    return summary.digest, journal.read(folder / "journal.jsonl")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return lived(tmp_path_factory.mktemp("alone") / "run", 1)


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("transport", ["auto", "sockets"])
def test_tiny_has_one_digest_however_many_replicas_share_the_gpu(alone, replicas, transport, tmp_path):
    digest, events = lived(tmp_path / "run", replicas, **{"run.transport": transport})
    assert digest == alone[0]
    assert {event["device"].partition(":")[0] for event in events if event["event"] == "started"} == {"cuda"}
    shared = replicas > torch.cuda.device_count()
    assert sum(event["event"] == "devices_shared" for event in events) == shared


def test_when_one_of_two_is_killed_the_other_goes_on_to_the_same_model(alone, tmp_path):
    digest, events = lived(tmp_path / "run", 2, kill=5)
    assert digest == alone[0]
    assert [(e["replicas"], e["restored"]) for e in events if e["event"] == "formed"][1:] == [(1, False)]


@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
def test_few_bits_have_one_digest_too(wire, tmp_path):
    found = {lived(tmp_path / str(n), n, **{"sync.wire": wire})[0] for n in (1, 2)}
    assert len(found) == 1


def test_checkpoints_hold_what_the_run_had_then(alone, tmp_path):
    """Their copies are made beside the steps that follow, which change what is copied."""
    events = lived(tmp_path / "run", 2)[1]
    taken = {event["step"]: event["digest"] for event in events if event["event"] == "step"}
    saved = {event["step"]: event["digest"] for event in events if event["event"] == "checkpoint"}
    assert saved and all(taken[step] == digest for step, digest in saved.items())


def test_the_recipe_of_a_gpu_is_another_than_that_of_the_processor(alone, tmp_path):
    assert lived(tmp_path / "run", 1, **{"compute.device": "cpu"})[0] != alone[0]
