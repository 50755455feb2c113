"""Law 1 for replicas that are several processes: as with any run, but that a death ends it."""

import os
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from samestep.errors import ClusterError
from samestep.launch import child
from samestep.model.optim import AdamW
from samestep.recover import checkpoint, digest, journal
from samestep.replica import mates
from samestep.replica.step import Step
from samestep.verbs.resume import resume
from samestep.verbs.verify import verify
from samestep.wire.loopback import run as on_threads
from tests.same import forking
from tests.same.test_survivors_go_on import RECIPE, lived, same

SHORT = {"steps": 20, "lanes": 4, "batch.accumulate": 1, "recover.checkpoint_every": 5}
SHORT |= {"evaluate.every": 10, "evaluate.prompts": ["def "]}
KINDS = {how: SHORT | {"compute.shard": how, "compute.shards": 2} for how in ("full", "tensor")}


@pytest.fixture(autouse=True, scope="module")
def forks():
    """Replicas and their mates are forked from this process."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (child, mates):
            patch.setattr(module, "subprocess", forking)
        forking.load()
        yield


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """The settings, and the run on one replica."""
    settings = KINDS[request.param]
    return settings, lived(tmp_path_factory.mktemp("whole") / "run", {}, replicas=1, **settings)


def test_two_replicas_come_to_the_model_of_one(kind, tmp_path):
    settings, whole = kind
    found = lived(tmp_path / "run", {}, replicas=2, **settings)
    same(found, whole)
    samples = [[e["text"] for e in events if e["event"] == "sample"] for _, events in (found, whole)]
    assert samples[0] == samples[1] and len(samples[0]) == 4


def test_the_model_that_is_saved_is_the_one_that_was_trained(kind):
    _, (summary, events) = kind
    last = [e["digest"] for e in events if e["event"] == "step"][-1]
    assert last == summary.digest == digest.of_folder(Path(summary.run) / "model")


def test_a_checkpoint_is_that_of_a_whole_model(kind):
    _, (summary, _) = kind
    folder = checkpoint.folder_of(Path(summary.run) / checkpoint.FOLDER, 20)
    manifest = checkpoint.verify(folder)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, shape in manifest.shapes.items():
                self.register_parameter(name.replace(".", "/"), torch.nn.Parameter(torch.zeros(shape)))

    def restored(wire):
        step = Step(Model(), wire, AdamW(), lanes=4)
        step.state.restore(list(manifest.shapes), checkpoint.parts(folder, manifest), manifest.updates)
        return {name.replace("/", "."): values for name, values in step.whole()}, step.state.moments

    ((weights, moments),) = on_threads(1, restored)
    assert digest.of_tensors(weights) == manifest.digest
    assert all(each.abs().sum() > 0 for values in moments.values() for each in values)


class Killer:
    """Kills a mate of the replica of this rank once a checkpoint is there."""

    def __init__(self, rank):
        self.rank, self.pids = rank, {}

    def __call__(self, event):
        if event["event"] == "started":
            self.pids[event["rank"]] = event["pid"]
        if event["event"] == "checkpoint" and self.pids:
            leader = self.pids.pop(self.rank)
            (mate,) = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
            os.kill(int(mate), signal.SIGKILL)
            self.pids = {}


def test_a_killed_process_ends_the_run_with_one_line_and_it_is_resumed_to_the_same_model(kind, tmp_path):
    settings, (wanted, _) = kind
    run = tmp_path / "run"
    with pytest.raises(ClusterError, match=r"^shard 1 of replica 1 was killed by SIGKILL.*$"):
        lived(run, {}, replicas=2, hears=Killer(1), **settings)
    assert max(e["step"] for e in journal.read(run / "journal.jsonl") if e["event"] == "step") < settings["steps"]
    found = resume(run, ["run.replicas=1"], "local", Console(quiet=True))
    assert found.digest == wanted.digest


def test_verify_runs_them_at_several_numbers_and_a_micro_batch_twice():
    overrides = ["compute.shard=full", "compute.shards=2", "lanes=2"]
    verdict = verify(RECIPE, overrides, "1,2", 1, Console(quiet=True))
    assert verdict.same, verdict
