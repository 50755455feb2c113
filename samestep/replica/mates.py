"""The other processes of a replica that is split: started by its first one, which alone the engine knows.

They get the engine's formations passed on, with connections of their own, and say nothing but why they failed. None
outlives the first, and it ends where one of them does.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace

from samestep.errors import ClusterError
from samestep.replica.place import CONTROL, Control, post

MOMENT = 1.0  # seconds in which the end of a process that was killed is known, and that of those which fell with it


class Mates:
    """environment: of this process, which they get too."""

    def __init__(self, control: Control, shards: int, environment: Mapping[str, str]) -> None:
        self._control, self._killed = control, threading.Event()
        started = list(enumerate((self._start(shard, environment) for shard in range(1, shards)), start=1))
        self._threads = [threading.Thread(target=self._watch, args=each, daemon=True) for each in started]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Until all have done their work."""
        for thread in self._threads:
            thread.join()

    def outlast(self) -> None:
        """Where this process has failed: does not return if a mate's end is the cause, which is told instead."""
        for thread in self._threads:
            thread.join(MOMENT)

    def _start(self, shard: int, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        ours, theirs = socket.socketpair()
        place = replace(self._control.place, shard=shard, engine=os.getpid())
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                stdin=subprocess.DEVNULL,
                env={**environment, CONTROL: str(theirs.fileno())},
                pass_fds=[theirs.fileno(), place.board, place.meeting, place.stack],
            )
        post(ours, asdict(place))
        self._control.mates.append(ours)
        return process

    def _watch(self, shard: int, process: "subprocess.Popen[bytes]") -> None:
        """End with the mate: those that compute with it would wait for ever."""
        line, said = self._control.mates[shard - 1], b""
        with contextlib.suppress(OSError):  # it has been killed with something unread
            while more := line.recv(1 << 16):
                said += more
        code = process.wait()
        if not code:
            return
        if said and self._killed.wait(MOMENT):
            return  # what it said is what another's end did to it
        if said:
            self._control.pass_on(said)
        else:
            self._killed.set()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
            self._control.failed(ClusterError(f"shard {shard} of replica {self._control.place.replica} {how}"))
        os._exit(ClusterError.exit_code)
