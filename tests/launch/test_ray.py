"""The same model under Ray, whoever dies. Run by scripts/ray_lab."""

import contextlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.launch.cluster import Cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install samestep[ray]"
    ),
]

TINY = Path(__file__).parent.parent.parent / "recipes" / "tiny.yaml"
DIGEST = "sha256:9392cdfa46477d8ffb131a603a1721220c1416d56bccd1dca77a376b639d1c2a"


class Lab:
    """A folder, a cluster that may be started in it, and runs of the command line."""

    def __init__(self, folder, cache):
        self.folder, self.cache = folder, cache
        self.ray = Path(tempfile.mkdtemp(prefix="sr", dir="/tmp"))  # sockets have short names
        self.cluster = Cluster(self.ray / "s")
        self.cluster.folder.mkdir()

    def start(self, *words):
        """Of a run under way: the process."""
        words = [*words, f"run.cache={self.cache}"]
        return subprocess.Popen(
            [sys.executable, "-m", "samestep.cli", *map(str, words)],
            cwd=self.folder,
            env=self.cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, *words):
        return self.start("train", TINY, "--run", "run", "--engine", "ray", *words)

    def on_cluster(self, *words):
        return self.train("--address", self.cluster.address, *words)

    def events(self, run="run"):
        journal = self.folder / run / "journal.jsonl"
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for(self, process, test, seconds=400):
        """Until the journal's events pass a test; what it has found."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := test(self.events()):
                return found
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        raise AssertionError(self.events())


@pytest.fixture
def lab(tmp_path, cache):
    here, before = Lab(tmp_path, cache), set(Path("/tmp").glob("samestep-ray-*"))
    try:
        yield here
        here.cluster.down()
        assert here.cluster.left(20) == []
        assert set(Path("/tmp").glob("samestep-ray-*")) <= before
    finally:
        here.cluster.end()
        shutil.rmtree(here.ray, ignore_errors=True)


def ended(process, code=0):
    """What it has printed, and how it has ended."""
    out, err = process.communicate(timeout=600)
    logs = "".join(path.read_text() for path in Path("/tmp").glob("sr*/*.log")) if process.returncode != code else ""
    assert process.returncode == code, out + err + logs
    return out, err


def of_kind(events, *kinds):
    return [event for event in events if event["event"] in kinds]


def members(events):
    """rank -> the newest start there."""
    return {event["rank"]: event for event in of_kind(events, "started")}


def commits(events, step):
    return [event for event in of_kind(events, "step") if event["step"] >= step]


def test_one_model_on_a_private_cluster(lab):
    for replicas in (1, 3):
        out, err = ended(lab.start("train", TINY, "--run", f"run{replicas}", "--engine", "ray", "--replicas", replicas))
        assert DIGEST in out
        assert "ray" not in err.lower(), err  # the panel, and nothing of Ray's


def test_one_model_on_two_raylets_of_which_both_are_used(lab):
    lab.cluster.head(cpus=1)
    lab.cluster.raylet("second", cpus=1)
    out, _ = ended(lab.on_cluster("--replicas", 2))
    assert DIGEST in out
    assert [e["replicas"] for e in of_kind(lab.events(), "formed")] == [2]


def next_commit(lab, run, kill):
    """Seconds from a kill after step 3 to the next commit of those that are left."""
    events = lab.wait_for(run, lambda events: commits(events, 3) and events)
    before = len(of_kind(events, "left"))
    kill(events)
    at = time.monotonic()
    lab.wait_for(run, lambda events: len(of_kind(events, "left")) > before)
    last = of_kind(lab.events(), "step")[-1]["step"]
    lab.wait_for(run, lambda events: commits(events, last + 1))
    seconds = time.monotonic() - at
    print(f"the next commit came {seconds:.2f} s after the kill")
    return seconds


def test_a_killed_actor_takes_its_replica_along_and_the_others_go_on_at_once(lab):
    lab.cluster.head(cpus=3)
    run = lab.on_cluster("--replicas", 3, "run.replace=false")
    seconds = next_commit(lab, run, lambda events: psutil.Process(members(events)[1]["pid"]).parent().kill())
    assert DIGEST in ended(run)[0]
    assert [e["replicas"] for e in of_kind(lab.events(), "formed")] == [3, 2]
    assert seconds < 5


def test_a_killed_raylet_takes_its_replicas_along_and_the_others_go_on_at_once(lab):
    lab.cluster.head(cpus=1)
    lab.cluster.raylet("second", cpus=2)
    run = lab.on_cluster("--replicas", 3, "run.replace=false", "sync.state=replicated")
    seconds = next_commit(lab, run, lambda events: lab.cluster.kill("second"))
    assert DIGEST in ended(run)[0]
    assert [e["replicas"] for e in of_kind(lab.events(), "formed")][-1] == 1
    assert seconds < 5


def test_a_raylet_that_is_added_later_is_used(lab):
    lab.cluster.head(cpus=1)
    many = ["steps=2000", "recover.digest_every=1"]
    run = lab.on_cluster(*many, "--replicas", 2, "run.minimum=1")
    lab.wait_for(run, lambda events: commits(events, 2))
    lab.cluster.raylet("second", cpus=1)
    wide = lab.wait_for(run, lambda events: [e for e in of_kind(events, "formed") if e["replicas"] == 2])
    lab.wait_for(run, lambda events: commits(events, wide[0]["step"] + 3))
    run.send_signal(signal.SIGTERM)
    ended(run, 75)
    found = {e["step"]: e["digest"] for e in of_kind(lab.events(), "step")}
    alone = lab.start("train", TINY, "--run", "alone", *many, "--replicas", 1)
    with contextlib.closing(alone.stdout), contextlib.closing(alone.stderr):
        while len(of_kind(lab.events("alone"), "step")) < len(found):
            time.sleep(0.1)
        alone.kill()
        alone.wait()
    wanted = {e["step"]: e["digest"] for e in of_kind(lab.events("alone"), "step")}
    assert found == {step: wanted[step] for step in found}


def test_started_here_stopped_and_resumed_under_ray(lab):
    run = lab.start("train", TINY, "--run", "run", "--replicas", 2)
    lab.wait_for(run, lambda events: commits(events, 2))
    run.send_signal(signal.SIGTERM)
    ended(run, 75)
    assert DIGEST in ended(lab.start("resume", "run", "--engine", "ray", "--replicas", 2))[0]


def test_stopped_under_ray_and_finished_here(lab):
    run = lab.train("--replicas", 2)
    lab.wait_for(run, lambda events: commits(events, 2))
    run.send_signal(signal.SIGTERM)
    ended(run, 75)
    assert DIGEST in ended(lab.start("resume", "run"))[0]


def one_line(process):
    _, err = ended(process, 4)
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    return line


def test_fewer_places_than_replicas_are_refused(lab):
    lab.cluster.head(cpus=1)
    assert "2 replicas were asked for, but the Ray cluster has 1 of the places" in one_line(
        lab.on_cluster("--replicas", 2)
    )


def test_a_wrong_address_is_refused(lab):
    assert "nobody answers at 127.0.0.1:9" in one_line(lab.train("--address", "127.0.0.1:9"))


def test_a_lost_head_ends_the_run_and_it_can_be_resumed(lab):
    lab.cluster.head(cpus=2)
    run = lab.on_cluster("--replicas", 2, "steps=2000", "recover.checkpoint_every=2")
    lab.wait_for(run, lambda events: of_kind(events, "checkpoint"))
    lab.cluster.kill("head")
    line = one_line(run)
    assert "the head of the Ray cluster is lost" in line and "goes on from the last checkpoint" in line


def test_an_engine_that_is_killed_leaves_nothing(lab):
    run = lab.train("--replicas", 2, "steps=2000")
    lab.wait_for(run, lambda events: commits(events, 2))
    run.kill()
    run.communicate()
    assert lab.cluster.left(30) == []
