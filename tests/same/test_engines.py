"""One run under one engine after the other, and Ray inside a Slurm job, both real. Run by scripts/engines_lab."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from samestep.recover import journal
from samestep.verbs.audit import audit, clean
from tests.conftest import TINY

DIGEST = "sha256:9392cdfa46477d8ffb131a603a1721220c1416d56bccd1dca77a376b639d1c2a"
SAMESTEP = [sys.executable, "-m", "samestep.cli"]
EACH = ["recover.checkpoint_every=1", "run.log_every=1"]
OURS = ("samestep.cli", "samestep.launch.raynode", "samestep.replica", "ray::", "raylet", "gcs_server")

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm of its own is here: see scripts/engines_lab"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install .[ray]"),
]


def processes(mark):
    """Of this lab's: those whose environment, which all inherit, names its Slurm, and that are no Slurm themselves."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if process.environ().get("SLURM_CONF") == os.environ["SLURM_CONF"] and any(one in words for one in mark):
                found.append(process)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    deadline = time.monotonic() + 60
    while (left := processes(OURS)) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert [process.cmdline() for process in left] == []
    assert list(Path("/tmp").glob("samestep-ray-*")) == []


class Run:
    def __init__(self, folder, cache):
        self.folder, self.cache = folder, f"run.cache={cache}"

    def start(self, *words):
        return subprocess.Popen(
            [*map(str, words), self.cache], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def events(self):
        path = self.folder / "journal.jsonl"
        return journal.read(path) if path.exists() else []

    def of(self, kind):
        return [event for event in self.events if event["event"] == kind]

    def until(self, found, seconds=300):
        deadline = time.monotonic() + seconds
        while not found():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.02)

    def logs(self):
        return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted((self.folder / "launch").glob("*.log")))

    def stopped(self, process, stop):
        """Once this life has committed a step."""
        lives = len(self.of("formed"))
        self.until(lambda: len(self.of("formed")) > lives and self.events[-1]["event"] == "step")
        stop()
        _, err = process.communicate(timeout=300)
        assert process.returncode == 75, err


@pytest.fixture
def run(tmp_path, cache):
    return Run(tmp_path / "run", cache)


def scancel_step():
    """SIGTERM to the tasks of the only job."""
    (job,) = subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True).stdout.split()
    subprocess.run(["scancel", "--signal=TERM", job], check=True)


@pytest.mark.parametrize(("here", "slurm", "ray"), [(2, 3, 1), (1, 2, 4), (4, 1, 2)])
def test_started_here_resumed_under_slurm_and_finished_under_ray(run, here, slurm, ray):
    local = run.start(*SAMESTEP, "train", TINY, "--run", run.folder, "--replicas", here, *EACH)
    run.stopped(local, local.terminate)
    words = ["srun", "-N", slurm, "-n", slurm, *SAMESTEP, "resume", run.folder, "--engine", "env", "run.log_every=1"]
    run.stopped(run.start(*words), scancel_step)
    done = run.start(*SAMESTEP, "resume", run.folder, "--engine", "ray", "--replicas", ray)
    out, err = done.communicate(timeout=600)
    assert done.returncode == 0 and DIGEST in out, err
    assert [event["replicas"] for event in run.of("formed")] == [here, slurm, ray]
    assert clean(audit(run.folder, lambda line: None))


def submit(run, *words):
    command = [*SAMESTEP, "slurm", TINY, "--run", run.folder, "--time", "20:00", *words, run.cache, "--json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["job"]


def state(job):
    done = subprocess.run(["scontrol", "show", "job", str(job), "-o"], capture_output=True, text=True, check=True)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)


def test_started_under_ray_and_finished_by_a_slurm_job(run):
    ray = run.start(*SAMESTEP, "train", TINY, "--run", run.folder, "--engine", "ray", "--replicas", 2, *EACH)
    run.stopped(ray, ray.terminate)
    job = submit(run, "--nodes", 3, *EACH)
    run.until(lambda: state(job)["JobState"] in ("COMPLETED", "FAILED"))
    assert [event["digest"] for event in run.of("finished")] == [DIGEST], run.logs()
    assert [event["replicas"] for event in run.of("formed")] == [2, 3]
    assert clean(audit(run.folder, lambda line: None))


def test_a_cluster_inside_a_job_is_elastic(run, tmp_path, cache):
    """A raylet is killed and comes back, the job is requeued, and each step has the digest that it has alone."""
    many = ["steps=4000", "recover.digest_every=1", "recover.checkpoint_every=20", "sync.state=replicated"]
    job = submit(run, "--nodes", 3, "--engine", "ray", *many)
    replicas = lambda: [event["replicas"] for event in run.of("formed")]  # noqa: E731
    run.until(lambda: 3 in replicas())
    (raylet,) = [p for p in processes(["raylet/raylet"]) if p.environ()["SLURMD_NODENAME"] == "n2"]
    before = len(replicas())
    raylet.kill()
    killed = time.monotonic()
    run.until(lambda: len(replicas()) > before)
    step = run.of("step")[-1]["step"]
    run.until(lambda: run.of("step")[-1]["step"] > step)
    print(f"the next commit came {time.monotonic() - killed:.2f} s after the kill of a raylet in the job")
    assert replicas()[before] == 2
    run.until(lambda: replicas()[-1] == 3)  # it was started again
    subprocess.run(["scontrol", "requeue", str(job)], check=True)
    run.until(lambda: run.of("resumed") and run.events[-1]["event"] == "step")
    (resumed,), (ended,) = run.of("resumed"), run.of("ended")
    assert ended["reason"].startswith("stopped by SIGTERM with a checkpoint") and resumed["step"] == resumed["last"]
    subprocess.run(["scancel", str(job)], check=True)
    run.until(lambda: state(job)["JobState"] == "CANCELLED")
    found = {event["step"]: event["digest"] for event in run.of("step")}
    alone = Run(tmp_path / "alone", cache)
    one = alone.start(*SAMESTEP, "train", TINY, "--run", alone.folder, "--replicas", 1, *many)
    alone.until(lambda: len(alone.of("step")) >= len(found))
    one.send_signal(signal.SIGTERM)
    one.communicate(timeout=60)
    wanted = {event["step"]: event["digest"] for event in alone.of("step")}
    assert found == {step: wanted[step] for step in found}
    shutil.rmtree(alone.folder)
