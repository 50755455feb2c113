"""Faults done to the replicas of a run on this host, by real signals, limits and damaged files. No right is needed but
that of the user who started the run.
"""

import contextlib
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from samestep.events import Event
from samestep.recover import checkpoint
from samestep.recover.faults import ENDS, Fault, victims, words

FIRST = 0.1  # seconds that a step is thought to take before one has been seen


class Halted(Exception):
    """All replicas were killed; the run is to be resumed."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.kind)
        self.fault = fault


class Replica:
    """A pid may be another's once its process is gone, a pidfd never is."""

    def __init__(self, rank: int, pid: int) -> None:
        self.rank, self.pid, self._pidfd = rank, pid, os.pidfd_open(pid)
        self._limits: tuple[int, int] | None = None

    @property
    def alive(self) -> bool:
        return not select.select([self._pidfd], [], [], 0)[0]

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def fill_disk(self) -> None:
        """No file can grow from now on: a full disk for this process alone."""
        self._limits = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (0, self._limits[1]))

    def free_disk(self) -> None:
        if self._limits is not None and self.alive:
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, self._limits)
        self._limits = None

    def close(self) -> None:
        os.close(self._pidfd)


class Striker:
    """Hears the events of a run, over all its lives, and strikes when a fault is due. struck: what it did, in words.

    due: faults that have not struck.
    """

    def __init__(self, faults: Sequence[Fault], steps: int, say: Callable[[str], None]) -> None:
        self.struck: list[str] = []
        self.due = list(faults)
        self._room_by = steps - 2  # from then on disks have room, for the model is written soon
        self.tell = say
        self._replicas: list[Replica] = []
        self._gone: list[Replica] = []  # of generations before; timers may still know them
        self._members = self._step = 0
        self._seconds = FIRST
        self._timers: dict[Fault, threading.Timer] = {}
        self._halt: Fault | None = None

    def __call__(self, event: Event) -> None:
        """Raises Halted once all replicas were killed."""
        if self._halt is not None:
            halt, self._halt = self._halt, None
            raise Halted(halt)
        match event["event"]:
            case "formed":
                self._gone, self._replicas = self._gone + self._replicas, []
                self._members = event["replicas"]
            case "started":
                self._replicas.append(Replica(event["rank"], event["pid"]))
            case "step":
                self._step, self._seconds = event["step"], event["seconds"]
        if event["event"] == "checkpoint_failed" or self._step >= self._room_by:
            for replica in self._replicas:
                replica.free_disk()
        if self._members == len(self._replicas):
            self._begin()

    def rest(self) -> None:
        """A life of the run is over. Faults that were still to strike will strike in the next."""
        for timer in self._timers.values():
            timer.cancel()
            timer.join()
        for replica in self._gone + self._replicas:
            replica.close()
        self._timers, self._halt = {}, None
        self._gone, self._replicas, self._members, self._step = [], [], 0, 0

    def _begin(self) -> None:
        """Set out all faults whose step has come."""
        for fault in [fault for fault in self.due if fault.step <= self._step and fault not in self._timers]:
            if fault.kind == "full":
                self._strike(fault)
            else:
                timer = self._timers[fault] = threading.Timer(fault.delay * self._seconds, self._strike, [fault])
                timer.start()

    def _strike(self, fault: Fault) -> None:
        living = sorted((replica for replica in self._replicas if replica.alive), key=lambda replica: replica.rank)
        if not living or (fault.kind == "full" and self._step >= self._room_by):
            return
        self.due.remove(fault)
        struck = [living[i] for i in victims(fault, len(living))]
        self._tell(fault, struck)
        if fault.kind in ENDS:
            self._halt = fault
        for replica in struck:
            self._does(fault, replica)

    def _does(self, fault: Fault, replica: Replica) -> None:
        if fault.kind == "full":
            replica.fill_disk()
        elif fault.kind == "hang":
            replica.signal(signal.SIGSTOP)
        elif fault.kind == "pause":
            replica.signal(signal.SIGSTOP)
            time.sleep(fault.seconds)
            replica.signal(signal.SIGCONT)
        else:
            replica.signal(signal.SIGKILL)

    def _tell(self, fault: Fault, struck: Sequence[Replica]) -> None:
        whom = ", ".join(f"{replica.rank} (process {replica.pid})" for replica in struck)
        said = f"step {self._step} + {fault.delay:g}: replica{'s' * (len(struck) > 1)} {whom} {words(fault)}"
        self.struck.append(said)
        self.tell(said)


def damage(checkpoints: Path, fault: Fault) -> str:
    """Do to the newest checkpoint what the fault says, if there is one. Returns what was done, in words."""
    found = checkpoint.steps(checkpoints)
    if not found:
        return "there is no checkpoint yet to damage"
    files = sorted(checkpoint.folder_of(checkpoints, found[0]).iterdir())
    file = files[int(fault.file * len(files))]
    place = int(fault.byte * file.stat().st_size)
    if fault.kind == "torn":
        os.truncate(file, place)
        return f"{file.parent.name}/{file.name} is cut to {place} bytes"
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ 1 << fault.picks[0] % 8]))
    return f"a bit of byte {place} of {file.parent.name}/{file.name} is flipped"
