"""A launched process beside its replica: it starts it, passes on what it says, and does what process 0 asks for.

To the replica it is the engine; the coordinator in process 0 (launch/env.py) decides. It hears of `work` first, then
of the one generation that there is (`form`), of a `stop`, and of the `end`, which is the same for all processes.
"""

import contextlib
import os
import selectors
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from samestep import __version__, errors
from samestep.errors import ClusterError, SamestepError
from samestep.events import Event
from samestep.launch.child import Near, spawn
from samestep.launch.engine import Program
from samestep.launch.line import Line
from samestep.launch.lookout import Seat, at
from samestep.launch.manners import scheduled
from samestep.recover.silence import Look
from samestep.replica import board, stack
from samestep.replica.board import Board
from samestep.replica.place import Place
from samestep.wire import tcp

TICK = 0.5  # seconds
LOOK = 1.0  # seconds between two looks at the replica
SILENT = 20.0  # seconds without an answer of the kernel of process 0's host

Make = Callable[[dict[str, Any]], Program]  # from the work that process 0 sends; raises where it cannot be done here


class Agent:
    """Of process `index`. host: its name. address: its own, for replicas of other processes; empty without any.
    local: its number on its host.
    """

    def __init__(self, line: Line, index: int, host: str, address: str, local: int = 0) -> None:
        self._line, self._index, self._host, self._address = line, index, host, address
        self._local = local
        self._asked = False  # to stop

    def stop(self) -> None:
        """Ask process 0 to stop all. Callable from a signal handler."""
        self._asked = True

    def run(self, make: Make) -> None:
        """To the end, which process 0 tells of: raises the error that ended the run, if one did."""
        with contextlib.ExitStack() as left:
            first = self._next()
            if first["do"] == "end":  # nothing is to be done, or nothing can be
                _end(first)
                return
            page = board.create(1)
            left.callback(os.close, page)
            seen = Board(page, 1)
            left.callback(seen.close)
            child = self._start(make, first["work"], page)
            left.callback(child.close)
            self._serve(child, seen)

    def _next(self) -> Event:
        """What process 0 says first: it may have data to prepare."""
        told: list[Event] | None = []
        while not told:
            time.sleep(TICK / 10)
            told = self._line.heard()
            if told is None or _silent(self._line):
                raise self._gone()
            self._tell_of_stop()
        return told[0]

    def _start(self, make: Make, work: dict[str, Any], page: int) -> Near:
        try:
            program = make(work)
            self._line.say({"event": "here", "host": self._host, "pid": os.getpid(), "version": __version__})
            meeting = os.memfd_create("samestep-meeting")
            place = Place(
                self._index,
                0,
                1,
                program.transport,
                page,
                meeting,
                stack.create(),
                os.getpid(),
                program.work,
                self._host,
                self._address,
                self._local,
            )
            try:
                return spawn(program, place)
            finally:
                os.close(meeting)
        except Exception as error:
            self._line.say(refusal(error))
            raise

    def _serve(self, child: Near, seen: Board) -> None:
        with scheduled(os.SCHED_BATCH), selectors.DefaultSelector() as selector:
            for source in (self._line, child.line, child.pidfd):
                selector.register(source, selectors.EVENT_READ)
            looked = 0.0
            while True:
                ready = [key.fileobj for key, _ in selector.select(TICK)]
                self._pass_on(child, ready, selector)
                if child.pidfd in ready:
                    selector.unregister(child.pidfd)
                    self._line.say(_exited(child, seen))
                if self._line in ready and self._obey(child, seen):
                    return
                if _silent(self._line):
                    raise self._gone()
                self._tell_of_stop()
                if time.monotonic() - looked >= LOOK:
                    looked = time.monotonic()
                    self._tell_of(at(seen, Seat(0, child.process.pid)), looked)

    def _pass_on(self, child: Near, ready: list[Any], selector: selectors.BaseSelector) -> None:
        """What the replica has said, its last words before its end."""
        if child.line in ready or (child.pidfd in ready and child.line in selector.get_map()):
            told = child.told()
            for event in told or []:
                self._line.say(event)
            if told is None:
                selector.unregister(child.line)

    def _obey(self, child: Near, seen: Board) -> bool:
        """Whether it was the end."""
        told = self._line.heard()
        if told is None:
            raise self._gone()
        for action in told:
            match action.pop("do"):
                case "form":
                    child.form(action | {"work": child.place.work}, [])  # all set themselves up, each from its own
                case "stop":
                    seen.ask_to_stop()
                case "end":
                    child.kill()
                    _end(action)
                    return True
        return False

    def _tell_of_stop(self) -> None:
        if self._asked:
            self._line.say({"event": "stop"})
            self._asked = False

    def _tell_of(self, look: Look | None, now: float) -> None:
        if look is not None:
            self._line.say({"event": "look", "now": now, "look": asdict(look)})

    def _gone(self) -> ClusterError:
        return ClusterError(f"process 0, which leads the run, is gone; process {self._index} has ended its replica")


def refusal(error: BaseException) -> Event:
    """As a replica tells of its end."""
    ours = isinstance(error, SamestepError)
    message = str(error) if ours else f"{type(error).__name__}: {error}"
    return {
        "event": "failed",
        "ours": ours,
        "kind": type(error).__name__ if ours else "SamestepError",
        "message": message,
        "traceback": "",
    }


def farewell(error: BaseException | None) -> Event:
    """What ends all: `error`, or None where the run is done."""
    if error is None:
        return {"do": "end", "kind": None}
    told = refusal(error)
    code = error.exit_code if isinstance(error, SamestepError) else 4
    return {"do": "end", "kind": told["kind"], "message": told["message"], "code": code}


def _end(said: Event) -> None:
    if said["kind"] is None:
        return
    made: type[SamestepError] = getattr(errors, said["kind"], ClusterError)
    error = made(f"{said['message']} (told by process 0)")
    error.exit_code = said["code"]
    raise error


def _exited(child: Near, seen: Board) -> Event:
    line = seen.read(0)
    last = {"step": line.step, "phase": line.phase.name.lower(), "pid": child.process.pid}
    return {"event": "exited", "clean": child.process.wait() == 0, "how": child.end()} | last


def _silent(line: Line) -> bool:
    """Whether the other host is. A line within this process has no such thing."""
    with contextlib.suppress(OSError):
        return tcp.silence(line.connection) > SILENT
    return False
