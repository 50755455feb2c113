"""What the engine does before Ray does anything, and with what the broker says. Ray itself: test_ray.py."""

import importlib.util
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from samestep.errors import ClusterError, RecipeError
from samestep.launch import ray
from samestep.launch.engine import Program
from samestep.launch.hosts import Host
from samestep.launch.ray import Ray
from samestep.recover.protocol import Terms
from samestep.verbs.train import engine_of

PROGRAM = Program([sys.executable, "-c", ""], "sockets")


def refused(address=None, program=PROGRAM):
    with pytest.raises((ClusterError, RecipeError)) as caught:
        Ray(address).run(program, Terms(1, 8), lambda event: None)
    return str(caught.value), caught.value.exit_code


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match="is not installed"):
        engine_of("ray", None)  # before a run has a folder
    assert refused() == ('--engine ray needs Ray, which is not installed; pip install "samestep[ray]"', 4)


def test_the_command_line_says_so_before_a_run_has_a_folder(samestep, tmp_path, tiny, monkeypatch):
    """Ray is hidden from its process, whether it is installed or not."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['ray'] = None")
    root = Path(__file__).parent.parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    done = samestep("train", tiny, "--engine", "ray", "--run", "run")
    assert done.code == 4 and done.err.count("\n") == 1 and 'pip install "samestep[ray]"' in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["sitecustomize.py"]


@pytest.fixture
def as_if_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.mark.usefixtures("as_if_installed")
@pytest.mark.parametrize("address", ["", "h0", "h0:", ":6379", "ray://h0"])
def test_what_is_no_address_is_refused(address):
    said, code = refused(address)
    assert said == f"--address is {address!r}, but must be HOST:PORT of a Ray cluster's head" and code == 2


@pytest.mark.usefixtures("as_if_installed")
def test_an_address_where_nobody_answers_is_refused():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        said, code = refused(address)
    assert (
        said.startswith(f"nobody answers at {address} ([Errno 111] Connection refused); give the address") and code == 4
    )


@pytest.mark.usefixtures("as_if_installed")
def test_fast_is_refused_for_it_is_for_one_host():
    said, code = refused(program=Program([sys.executable], "torch"))
    assert "sync.strategy fast is for one host" in said and code == 2


@pytest.mark.usefixtures("as_if_installed")
def test_hosts_of_the_recipe_are_refused():
    said, code = refused(program=Program([sys.executable], hosts=[Host("h0", (), "10.77.0.1")]))
    assert said.startswith("run.hosts is for --engine local") and code == 2


@pytest.mark.usefixtures("as_if_installed")
def test_an_engine_is_named_and_only_ray_takes_an_address():
    assert isinstance(engine_of("ray", "h0:6379"), Ray)
    with pytest.raises(RecipeError, match="--engine is 'rey', but must be one of local, ray"):
        engine_of("rey", None)
    with pytest.raises(RecipeError, match="--address h0:1 is for --engine ray"):
        engine_of("local", "h0:1")


@pytest.fixture
def broker(as_if_installed):
    """One whose other end is the test."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = ray._Broker(SimpleNamespace(), ours, Path("logs/ray.log"))
        found.theirs = theirs
        found.says = lambda **event: theirs.sendall(json.dumps(event).encode() + b"\n")
        yield found


def test_what_ray_complains_of_is_told_with_its_log(broker):
    broker.says(event="failed", reason="no such cluster")
    with pytest.raises(ClusterError, match=r"Ray says: no such cluster; look at logs/ray.log"):
        broker.hear(1.0)


def test_the_end_of_the_broker_is_the_loss_of_the_head(broker):
    broker.theirs.close()
    with pytest.raises(ClusterError, match=r"the head of the Ray cluster is lost, and all replicas with it; look at"):
        broker.hear(1.0)


def test_a_private_cluster_leaves_no_process_not_even_one_whose_parent_has_ended():
    """As where Ray fails half way: a child of a child that is gone, in a session of its own."""
    script = """
import os, subprocess, sys
from samestep.launch.orphans import adopt, below, end_all
adopt()
sleeper = "import subprocess as s; print(s.Popen(['sleep', '60'], start_new_session=True, stdout=s.DEVNULL).pid)"
orphan = int(subprocess.run([sys.executable, "-c", sleeper], stdout=subprocess.PIPE, check=True).stdout)
own = subprocess.Popen(["sleep", "60"]).pid
before = sorted(below(os.getpid()))
end_all(os.getpid())
print(before == sorted([orphan, own]), below(os.getpid()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout == "True []\n", done.stderr


class Nodes:
    """As far as waiting for places goes: one more nurse at each look."""

    def __init__(self, most):
        self.most, self.idle = most, []

    def hear(self, seconds):
        time.sleep(0.01)
        if len(self.idle) < self.most:
            self.idle.append("nurse")
        return iter(())


def waits(broker, most, room, **terms):
    if room is not None:
        broker.says(event="room", places=room)
    return Ray()._wait(broker, Nodes(most), Terms(**({"lanes": 8} | terms)))


def test_a_run_begins_once_all_have_a_place(broker):
    assert waits(broker, 3, 5, replicas=3) == 3


def test_a_cluster_with_fewer_places_is_refused_at_once(broker):
    with pytest.raises(ClusterError, match="3 replicas were asked for, but the Ray cluster has 2 of the places"):
        waits(broker, 2, 2, replicas=3)


def test_with_a_minimum_a_run_begins_with_what_there_is(broker):
    assert waits(broker, 2, 2, replicas=3, minimum=1) == 2


def test_places_that_another_job_has_are_not_waited_for_for_ever(broker, monkeypatch):
    monkeypatch.setattr(ray, "PLACES", 0.3)
    with pytest.raises(ClusterError, match="the Ray cluster gave 1 within 0 s of the places"):
        waits(broker, 1, 3, replicas=3)
    assert waits(broker, 1, None, replicas=3, minimum=1) == 1


def test_asked_to_stop_meanwhile_it_ends(broker):
    engine = Ray()
    engine.stop()
    with pytest.raises(ClusterError, match="stopped while Ray looked for places"):
        engine._wait(broker, Nodes(1), Terms(3, 8))


def test_the_broker_is_ended_with_the_run_and_its_words_are_in_the_log(tmp_path, monkeypatch):
    """Without Ray it ends by itself, with an error that is told."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent.parent.parent}")
    (tmp_path / "ray.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ClusterError, match="Ray says: broken on purpose"):
        Ray().run(Program([sys.executable], "sockets", logs=tmp_path / "logs"), Terms(1, 8), lambda event: None)
    assert "broken on purpose" in (tmp_path / "logs" / "ray.log").read_text()
