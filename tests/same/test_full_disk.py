"""A run whose own disk is full, is killed and goes on, ends in the model of the undisturbed run, with all its lines."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from samestep.recover import alternate, checkpoint, journal
from samestep.verbs import chaos
from samestep.verbs.audit import audit, clean
from samestep.verbs.train import Summary, train

RECIPE = Path("recipes/tiny.yaml").resolve()
CHANGES = ["steps=24", "recover.checkpoint_every=4", "recover.digest_every=1", "run.replicas=2"]
SIZE = "24m"
FULL, KILLED, FREED = 2, 16, 21  # after these steps; a page of the journal is there, with room for some lines


class Small:
    """A disk that can be filled."""

    def __init__(self, folder):
        self.run, self._filler = folder / "run", folder / "filler"

    def fill(self):
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass

    def free(self, event):
        if event["event"] == "step" and event["step"] == FREED:
            self._filler.unlink()


@pytest.fixture
def disk(tmp_path):
    if not shutil.which("mount"):
        pytest.skip("a small disk cannot be mounted here: there is no mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "samestep-test", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield Small(folder)
    subprocess.run(["umount", "-l", folder], check=True)


def wait_for(there, engine):
    until = time.monotonic() + 100
    while not there():
        assert engine.poll() is None and time.monotonic() < until
        time.sleep(0.02)


def steps(events):
    return [event["step"] for event in events if event["event"] == "step"]


def told_of(run):
    """Whether the checkpoint that the run is to go on from has been told of, and something after it."""
    events = [(event["event"], event.get("step")) for event in alternate.events_of(run)]
    return ("checkpoint", KILLED) in events[:-1]


def killed(disk, beside):
    """A run that loses its disk and then its engine, once a checkpoint stands in the alternate."""
    command = [sys.executable, "-m", "samestep.cli", "train", RECIPE, "--run", disk.run, *CHANGES]
    engine = subprocess.Popen([*command, f"run.alternate={beside}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    journalled = disk.run / journal.NAME
    wait_for(lambda: journalled.exists() and FULL in steps(journal.read(journalled)), engine)
    disk.fill()
    wait_for(lambda: told_of(disk.run), engine)
    engine.send_signal(signal.SIGKILL)
    return engine.communicate()[1].decode()


@pytest.mark.slow
def test_a_full_disk_and_a_kill_cost_neither_the_model_nor_a_line(disk, tmp_path):
    whole, beside = train(RECIPE, CHANGES, tmp_path / "whole", "local", Console(quiet=True)), tmp_path / "alternate"
    said = killed(disk, beside)
    assert "journal.jsonl: " in said and "could be written; training goes on" in said  # the end of a page was left
    assert "checkpoint of step 4: " in said and "No space left on device; trying again" in said
    here, all_of_it = steps(journal.read(disk.run / journal.NAME)), steps(alternate.events_of(disk.run))
    assert here[-1] < KILLED <= all_of_it[-1] and all_of_it == list(range(1, len(all_of_it) + 1))
    assert f"it is in {beside / checkpoint.FOLDER}/step-{KILLED}" in said
    assert not checkpoint.steps(disk.run / checkpoint.FOLDER)

    summary = Summary(str(disk.run))
    chaos.go_on(disk.run, 3, [summary.add, disk.free])
    assert (summary.digest, summary.steps, summary.final_loss) == (whole.digest, whole.steps, whole.final_loss)
    events = journal.read(disk.run / journal.NAME)
    (resumed,) = (event for event in events if event["event"] == "resumed")
    assert resumed["step"] == KILLED and resumed["last"] == all_of_it[-1]
    assert steps(events) == all_of_it + list(range(KILLED + 1, 25))
    assert [event["event"] for event in events if event["event"].startswith("journal_")][-1] == "journal_written"
    assert clean(audit(disk.run, lambda line: None)) and not (beside / journal.NAME).exists()
    assert {path.name for path in beside.iterdir()} == {alternate.OWNER, checkpoint.FOLDER}
    places = checkpoint.places(disk.run, beside)
    assert [one.step for one in checkpoint.saved(*places)] == [24, 20, 16]
