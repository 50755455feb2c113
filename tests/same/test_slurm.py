"""The tiny recipe under real Slurm. Run by scripts/slurm_lab, which has three nodes on one machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samestep.recover import journal
from samestep.verbs.audit import audit, clean

DIGEST = "sha256:9392cdfa46477d8ffb131a603a1721220c1416d56bccd1dca77a376b639d1c2a"
TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
SAMESTEP = [sys.executable, "-m", "samestep.cli"]
LONG = ["recover.checkpoint_every=1", "data.context=64", "run.log_every=1"]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        "SLURM_CONF" not in os.environ or shutil.which("sbatch") is None,
        reason="no Slurm of its own is here: scripts/slurm_lab sets one up",
    ),
]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    deadline = time.monotonic() + 60
    while replicas() and time.monotonic() < deadline:
        time.sleep(0.3)
    assert replicas() == []


def replicas():
    import psutil

    found = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    return [words for words in found if "--engine" in words and "env" in words]


def slurm(*words, code=0):
    done = subprocess.run([*SAMESTEP, "slurm", *map(str, words), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def state(job):
    done = subprocess.run(["scontrol", "show", "job", str(job), "-o"], capture_output=True, text=True, check=True)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)


def scontrol(*words):
    subprocess.run(["scontrol", *map(str, words)], check=True)


def until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.1)


def ended(job, run):
    until(lambda: state(job)["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"))
    assert state(job)["JobState"] == "COMPLETED", logs(run)
    return events(run)


def logs(run):
    return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted((run / "launch").glob("*.log")))


def events(run):
    return journal.read(run / "journal.jsonl") if (run / "journal.jsonl").exists() else []


def steps(run):
    return [event["step"] for event in events(run) if event["event"] == "step"]


def the_same(run):
    told = events(run)
    assert [event["digest"] for event in told if event["event"] == "finished"] == [DIGEST]
    assert clean(audit(run, lambda line: None))
    return told


def test_plain_srun(tmp_path, cache):
    run = tmp_path / "run"
    words = [*SAMESTEP, "train", str(TINY), "--run", str(run), "--engine", "env", f"run.cache={cache}", "--json"]
    done = subprocess.run(["srun", "-N", "2", "-n", "2", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == DIGEST
    assert {event["replicas"] for event in the_same(run) if event["event"] == "formed"} == {2}


def test_srun_starts_more_processes_than_lanes_can_take(tmp_path, cache):
    words = [*SAMESTEP, "train", str(TINY), "--run", str(tmp_path / "run"), "--engine", "env", "lanes=2"]
    done = subprocess.run(["srun", "-N", "3", "-n", "3", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    lines = [line for line in done.stderr.splitlines() if "error:" in line and "srun" in line and "task" not in line]
    assert len(lines) == 3 and all("srun starts 3 processes, but at most 2 can share a step" in line for line in lines)


def test_sbatch_requeued_in_the_middle(tmp_path, cache):
    """It was asked to stop, wrote a checkpoint, and went on from there."""
    run = tmp_path / "a run"
    job = slurm(TINY, "--nodes", 2, "--time", "10:00", "--run", run, f"run.cache={cache}", *LONG)["job"]
    until(lambda: len(steps(run)) >= 3)
    scontrol("requeue", job)
    until(lambda: state(job)["Restarts"] == "1")
    ended(job, run)
    told = the_same(run)
    (resumed,) = [event for event in told if event["event"] == "resumed"]
    assert resumed["step"] >= 3 and resumed["step"] == resumed["last"]
    assert "restarted 1 times" in logs(run) and "step 12/12" in logs(run)


def test_a_node_set_down_is_replaced_by_another(tmp_path, cache):
    run = tmp_path / "run"
    job = slurm(TINY, "--nodes", 2, "--time", "10:00", "--run", run, f"run.cache={cache}", *LONG)["job"]
    until(lambda: len(steps(run)) >= 3)
    before = state(job)["NodeList"]
    scontrol("update", "nodename=n2", "state=down", "reason=test")
    try:
        ended(job, run)
        assert before == "n[1-2]" and state(job)["NodeList"] == "n[1,3]"
    finally:
        scontrol("update", "nodename=n2", "state=resume")
    assert [event["step"] >= 2 for event in the_same(run) if event["event"] == "resumed"] == [True]


def test_a_preempted_step_ends_with_75_and_the_script_requeues_the_job(tmp_path, cache):
    run = tmp_path / "run"
    job = slurm(TINY, "--nodes", 2, "--time", "10:00", "--run", run, f"run.cache={cache}", *LONG)["job"]
    until(lambda: len(steps(run)) >= 3)
    subprocess.run(["scancel", "--batch", "--signal=TERM", str(job)], check=True)  # as --signal=B:TERM@120 does
    until(lambda: state(job)["Restarts"] == "1")
    ended(job, run)
    the_same(run)
    assert "ended with code 75 (RUNNING)" in logs(run)


def test_several_recipes_are_an_array(tmp_path, cache):
    other = tmp_path / "other.yaml"
    other.write_text(TINY.read_text())
    done = slurm(TINY, other, "--time", "10:00", "--run", tmp_path / "runs", f"run.cache={cache}", "steps=2")
    runs = [Path(run) for run in done["runs"]]
    assert runs == [tmp_path / "runs" / "tiny", tmp_path / "runs" / "other"]
    until(lambda: all(any(event["event"] == "finished" for event in events(run)) for run in runs))
    assert len({event["digest"] for run in runs for event in events(run) if event["event"] == "finished"}) == 1
