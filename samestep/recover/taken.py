"""A run folder is one job's at a time, whoever starts its replicas: two would mix their steps and their checkpoints.

A lock of Linux (flock), which ends with the process that holds it, however that ends; a network file system passes it
on to its server. The file says whose it is, and is deleted by its owner; one that a killed owner has left is only a
file.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from samestep.errors import ClusterError

NAME = "lock"  # in the run folder
PATIENCE = 2.0  # seconds that an owner may take to end
PAUSE = 0.2  # seconds between two tries


def owner(by: str) -> str:
    """What this process is called where it has a run: who has started it, its host, its number."""
    return f"{by} on {socket.gethostname()}, process {os.getpid()}"


@contextlib.contextmanager
def taken(run: Path, by: str, say: Callable[[str], None], patience: float = PATIENCE) -> Iterator[None]:
    """The run folder, which is there, for this process alone. by: see `owner`. say: told where there can be no lock, as
    on a disk that is full or knows none. ClusterError that names the other where one has it after `patience` seconds.
    """
    path = run / NAME
    try:
        file = _locked(path, time.monotonic() + patience)
    except OSError as error:
        say(f"{run} cannot be locked ({error.strerror}); see to it that no other job trains it")
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a full disk; it is a name only
            os.truncate(file, 0)
            os.write(file, owner(by).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is unlocked, so that nobody else's is deleted
        os.close(file)


def _locked(path: Path, until: float) -> int:
    """The open file, once it is locked and still the one that has this name."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _lock(file) and _is(file, path):
                return file
            if time.monotonic() >= until:
                raise ClusterError(
                    f"{path.parent} is being trained by another job ({os.read(file, 999).decode() or 'unnamed'}); end "
                    "that job first, or give another --run"
                )
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        time.sleep(PAUSE)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ESTALE:  # its owner, on another host, has deleted it just now
            return False
        raise
    return True


def _is(file: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
