"""Faults are done to real processes and real files, and to no others."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from samestep.launch.strike import Halted, Striker, damage
from samestep.recover.faults import Fault

SLEEPING = "import time; time.sleep(60)"
WRITING = """
import pathlib, sys
for path in sys.stdin:
    try:
        pathlib.Path(path.strip()).write_text("x")
        print("written", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


def fault(kind, step=1, **given):
    fields = {"delay": 0.0, "picks": (0, 0), "seconds": 0.05, "replicas": 2, "file": 0.0, "byte": 0.5}
    return Fault(kind, step, **(fields | given))


@pytest.fixture
def processes():
    """Two replicas, as far as a striker can tell."""
    found = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for code in (SLEEPING, WRITING)
    ]
    yield found
    for process in found:
        process.kill()
        process.communicate()


@pytest.fixture
def begun(processes):
    """A striker that knows of both replicas, after step 0 of 10."""
    strikers = []

    def make(*faults):
        striker = Striker(faults, 10, lambda line: None)
        strikers.append(striker)
        meet(striker, processes)
        return striker

    yield make
    for striker in strikers:
        striker.rest()


def meet(striker, processes):
    striker({"event": "formed", "replicas": len(processes)})
    for rank, process in enumerate(processes):
        striker({"event": "started", "rank": rank, "pid": process.pid})


def commit(striker, step, seconds=0.0):
    striker({"event": "step", "step": step, "seconds": seconds})


def eventually(true):
    until = time.monotonic() + 10
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()


def test_a_replica_is_killed_after_its_step_and_not_before(begun, processes):
    striker = begun(fault("kill", step=2, picks=(1, 0)))
    commit(striker, 1)
    assert not striker.struck and processes[1].poll() is None
    commit(striker, 2)
    assert processes[1].wait(10) == -signal.SIGKILL and processes[0].poll() is None
    assert striker.struck == [f"step 2 + 0: replica 1 (process {processes[1].pid}) killed"] and not striker.due


def test_the_delay_is_a_share_of_a_step(begun, processes):
    striker, began = begun(fault("kill", delay=0.5)), time.monotonic()
    commit(striker, 1, seconds=0.6)
    processes[0].wait(10)
    assert time.monotonic() - began >= 0.3


def test_a_pause_ends_by_itself_and_a_hang_does_not(begun, processes):
    striker = begun(fault("pause", seconds=0.3), fault("hang", picks=(1, 0)))
    commit(striker, 1)
    paused, hanging = (psutil.Process(process.pid) for process in processes)
    assert eventually(lambda: paused.status() == psutil.STATUS_STOPPED)
    assert eventually(lambda: paused.status() != psutil.STATUS_STOPPED)
    assert hanging.status() == psutil.STATUS_STOPPED


def test_after_all_are_killed_the_next_event_ends_the_life(begun, processes):
    striker = begun(fault("halt"))
    commit(striker, 1)
    assert [process.wait(10) for process in processes] == [-signal.SIGKILL] * 2
    with pytest.raises(Halted) as halted:
        striker({"event": "left", "replica": 0})
    assert halted.value.fault.replicas == 2


def test_a_full_disk_has_room_again_once_a_checkpoint_has_failed(begun, processes, tmp_path):
    def write():
        processes[1].stdin.write(f"{tmp_path}/file\n")
        processes[1].stdin.flush()
        return processes[1].stdout.readline().strip()

    striker = begun(fault("full"))
    assert write() == "written"
    commit(striker, 1)
    assert write() == "File too large"
    striker({"event": "checkpoint_failed", "step": 2})
    assert write() == "written"


def test_a_disk_is_not_filled_shortly_before_the_model_is_written(begun):
    striker = begun(fault("full"))
    striker._step = 8
    commit(striker, 8)
    assert not striker.struck and len(striker.due) == 1


def test_nobody_is_struck_before_all_have_started(processes):
    striker = Striker([fault("kill", step=0)], 10, lambda line: None)
    striker({"event": "formed", "replicas": 3})
    meet_two = [{"event": "started", "rank": rank, "pid": p.pid} for rank, p in enumerate(processes)]
    for event in meet_two:
        striker(event)
    assert not striker._timers
    striker.rest()


def test_what_has_not_struck_when_a_life_ends_strikes_in_the_next(begun, processes):
    striker = begun(fault("kill", delay=0.9))
    commit(striker, 1, seconds=60.0)
    striker.rest()
    assert not striker.struck and processes[0].poll() is None
    meet(striker, processes)
    commit(striker, 1)
    assert processes[0].wait(10) == -signal.SIGKILL


@pytest.fixture
def checkpoints(tmp_path):
    for step in (3, 12):
        (tmp_path / f"step-{step}").mkdir()
        for name in ("manifest.json", "shard"):
            (tmp_path / f"step-{step}" / name).write_bytes(bytes(100))
    return tmp_path


def content(folder: Path):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_torn_file_of_the_newest_checkpoint_is_cut(checkpoints):
    assert damage(checkpoints, fault("torn", file=0.9)) == "step-12/shard is cut to 50 bytes"
    assert {name: len(data) for name, data in content(checkpoints).items() if len(data) != 100} == {"step-12/shard": 50}


def test_one_bit_of_the_newest_checkpoint_is_flipped(checkpoints):
    before = content(checkpoints)
    assert damage(checkpoints, fault("flip", picks=(3, 0))) == "a bit of byte 50 of step-12/manifest.json is flipped"
    after = content(checkpoints)
    assert [name for name in before if before[name] != after[name]] == ["step-12/manifest.json"]
    assert sum(byte.bit_count() for byte in after["step-12/manifest.json"]) == 1


def test_without_a_checkpoint_nothing_is_damaged(tmp_path):
    assert damage(tmp_path, fault("torn")) == "there is no checkpoint yet to damage"
    assert not content(tmp_path)
