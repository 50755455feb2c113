"""Replicas that are forked from the engine's process, which has imported what they need.

A start then takes a tenth of a second, not two to six, so that many runs can be tried. All else is as ever: processes
of their own, with their own signals, descriptors and exit codes.
"""

import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from samestep.launch import child
from samestep.replica.__main__ import main

NEEDED = (
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "samestep.replica.train",
    "samestep.replica.repeat",
    "samestep.wire.shared_memory",
    "peft",
)


def load() -> None:
    """Import what replicas need."""
    for name in NEEDED:
        importlib.import_module(name)


def prepare() -> None:
    """To be called once, before the first replica is started."""
    load()
    gc.freeze()
    child.subprocess = sys.modules[__name__]


class Popen:
    """What launch/child.py and replica/mates.py need of subprocess.Popen."""

    def __init__(
        self, command: Sequence[str], *, stdin, env, pass_fds, stdout=1, stderr=2, start_new_session=False
    ) -> None:
        self._code = None
        self.pid = os.fork()
        if not self.pid:
            _become(stdout, env, pass_fds, start_new_session)
        if start_new_session:
            with contextlib.suppress(OSError):  # both do it, so that it is done whoever comes first
                os.setpgid(self.pid, self.pid)

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


DEVNULL = subprocess.DEVNULL


def _become(log: int, env: dict[str, str], kept: Sequence[int], leads: bool) -> None:
    """A replica. Never returns."""
    code = 1
    try:
        gc.freeze()  # what the engine has left must not close descriptors whose numbers are ours by then
        if leads:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        before = 3
        for descriptor in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
            os.closerange(before, descriptor)
            before = descriptor + 1
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(env)
        code = main()
    finally:
        os._exit(code)
