"""A run folder is one job's at a time, and a job that is gone has none."""

import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from samestep.errors import ClusterError
from samestep.recover.taken import NAME, owner, taken

OWNER = """
import sys, time
from pathlib import Path
from samestep.recover.taken import taken
with taken(Path(sys.argv[1]), "srun", print):
    print("taken", flush=True)
    sys.stdin.readline()
"""


def silent(line):
    raise AssertionError(line)


@pytest.fixture
def other(tmp_path):
    """Another process that has the folder."""
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def take(folder, patience=0.0, say=silent):
    with taken(folder, "ours", say, patience):
        return (folder / NAME).read_text()


def test_who_has_it_is_named_and_keeps_it(tmp_path, other):
    for _ in range(2):  # the one that is refused takes nothing away
        with pytest.raises(ClusterError, match=rf"by another job \(srun on \S+, process {other.pid}\); end that job"):
            take(tmp_path)
    other.communicate("end\n")
    assert take(tmp_path) == owner("ours")


def test_one_that_was_killed_locks_nobody_out(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / NAME).exists()
    assert take(tmp_path) == owner("ours")
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_about_to_end_is_waited_for(tmp_path, other):
    threading.Timer(0.4, other.kill).start()
    assert take(tmp_path, patience=10.0) == owner("ours")


def test_a_file_that_was_deleted_while_it_was_waited_for_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    lock, real = [], fcntl.flock

    def flock(file, how):
        """Its owner ends between our open and our lock, and a third job begins."""
        if not lock:
            (tmp_path / NAME).unlink()
            lock.append(os.open(tmp_path / NAME, os.O_RDWR | os.O_CREAT))
            real(lock[0], how)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ClusterError, match="being trained by another job"):
        take(tmp_path)
    os.close(lock[0])


@pytest.mark.parametrize("kind", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_it_is_said_and_the_run_goes_on(tmp_path, monkeypatch, kind):
    def flock(file, how):
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = []
    with taken(tmp_path, "ours", said.append):
        pass
    assert said == [f"{tmp_path} cannot be locked ({os.strerror(kind)}); see to it that no other job trains it"]


def test_a_full_disk_only_takes_the_name(tmp_path, monkeypatch):
    def write(file, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    assert take(tmp_path) == ""
    with taken(tmp_path, "ours", silent), pytest.raises(ClusterError, match=r"another job \(unnamed\)"):
        take(tmp_path)
