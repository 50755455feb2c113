"""Questions to a process of its own, since the answer may hang, crash or take long: disks, names, native libraries."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

SLICE = 0.25  # seconds of waiting: where this process itself did not run, as under a debugger, at most one is lost
LAST = 1.0  # seconds that a process has to clean up behind itself

Answer = dict[str, Any]
Asked = subprocess.Popen[str] | OSError


@contextlib.contextmanager
def asking(module: str, *words: str) -> Iterator[Asked]:
    """Run a module of this folder, which prints its answer as JSON. It does not outlive the block."""
    command = [sys.executable, "-P", "-m", f"samestep.launch.health.{module}", *words]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=none, stdout=pipe, stderr=pipe, text=True)
    except OSError as error:  # such as a limit on processes
        yield error
        return
    try:
        yield process
    finally:
        _end(process)


def answer(asked: Asked, seconds: float) -> Answer:
    """What it has said. `late` where it has not within so many seconds, `error` where it could not."""
    if isinstance(asked, OSError):
        return {"error": f"no process can be started: {asked.strerror}"}
    said, complained = _spoken(asked, seconds)
    if asked.poll() is None:
        _end(asked)
        return {"late": seconds}
    if asked.returncode == 0:
        found: Answer = json.loads(said.splitlines()[-1])
        return found
    return {"error": (complained.strip().splitlines() or [f"it ended with code {asked.returncode}"])[-1]}


def _spoken(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """All that it says until its end; nothing where that has not come."""
    for _ in range(round(seconds / SLICE)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=SLICE)
    return "", ""


def _end(process: subprocess.Popen[str]) -> None:
    """By force where it does not go; one that Linux cannot end, since a disk does not answer, is left to it."""
    for end in (process.terminate, process.kill):
        end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=LAST)
            return
