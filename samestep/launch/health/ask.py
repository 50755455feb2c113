"""Questions to a process of its own, since the answer may hang, crash or take long: disks, names, native libraries."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

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
    try:
        said, complained = asked.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(asked)
        return {"late": seconds}
    if asked.returncode == 0:
        found: Answer = json.loads(said.splitlines()[-1])
        return found
    return {"error": (complained.strip().splitlines() or [f"it ended with code {asked.returncode}"])[-1]}


def _end(process: subprocess.Popen[str]) -> None:
    """By force where it does not go; one that Linux cannot end, since a disk does not answer, is left to it."""
    for end in (process.terminate, process.kill):
        end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=LAST)
            return
