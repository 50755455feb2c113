"""All that is below a process, also what its own parent has left."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path


def adopt() -> None:
    """Have Linux make this process the parent of those below it whose own has ended: none is ever out of sight."""
    become_subreaper = 36
    ctypes.CDLL(None).prctl(become_subreaper, 1)


def end_all(process: int) -> None:
    """Kill all that is below a process. Ray leaves some where a start has failed half way."""
    while found := below(process):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def below(process: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended just now
            children += [int(child) for child in task.read_text().split()]
    return children + [found for child in children for found in below(child)]
