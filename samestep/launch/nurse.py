"""Who looks after one replica on a node that the engine does not see: starts it, tells of it, and ends it.

It keeps one line to the engine, over TCP: events come from it, orders go to it, both as JSON. It says all that its
replica says, where this is once a second, and how it ended. A nurse without a line ends its replica; a replica without
a nurse is ended by Linux. What is run stands in the ward, which the engine's scheduler has brought: no order can name
another command.
"""

import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samestep.errors import ClusterError
from samestep.events import Event
from samestep.launch import handshake, vitals
from samestep.launch.child import Near, spawn
from samestep.launch.engine import Program
from samestep.replica import board, stack
from samestep.replica.board import Board
from samestep.replica.place import Place
from samestep.wire import tcp

LOOK = 1.0  # seconds between two words of where the replica is
LONGEST = 10.0  # seconds that a call may take
PAUSE = 1.0  # seconds between two calls
MISSES = 30  # calls in a row that come to nothing


@dataclass(frozen=True)
class Ward:
    """What a nurse has to know. engine: where it calls. token: what only the run's own know, in hexadecimal digits.

    python: the engine's own interpreter; where a command begins with it, the nurse's own is meant. folder: where the
    engine runs, and its relative paths begin.
    """

    engine: tuple[str, int]
    token: str
    command: tuple[str, ...]
    python: str
    transport: str
    threads: int
    logs: str | None
    folder: str

    def program(self, work: dict[str, Any]) -> Program:
        command = [sys.executable if word == self.python else word for word in self.command]
        return Program(command, self.transport, self.threads, work, Path(self.logs) if self.logs else None)


def tend(ward: Ward, name: str, address: str) -> None:
    """Until the engine hangs up. name, address: of this node. OSError where the engine is not reached."""
    with socket.create_connection(ward.engine, timeout=LONGEST) as line:
        tcp.tune(line)
        handshake.greet(line, bytes.fromhex(ward.token))
        nurse = _Nurse(line, ward, name, address)
        try:
            nurse.work()
        finally:
            nurse.close()


def call_again(ward: Ward, name: str, address: str, sleep: Callable[[float], None]) -> None:
    """`tend`, and once more where the engine has hung up but is still there; until it has not been for a while."""
    missed = 0
    while missed < MISSES:
        try:
            tend(ward, name, address)
            missed = 0
        except ConnectionRefusedError:
            return  # its host answers, and the run has ended
        except OSError:
            missed += 1
        sleep(PAUSE)


class _Nurse:
    def __init__(self, line: socket.socket, ward: Ward, name: str, address: str) -> None:
        self._line, self._ward, self._name, self._address = line, ward, name, address
        self._pending = b""
        self._child: Near | None = None
        self._page, self._meeting = board.create(1), os.memfd_create("samestep-meeting")
        self._board = Board(self._page, 1)
        self._selector = selectors.DefaultSelector()
        self._selector.register(line, selectors.EVENT_READ)
        self._looked = 0.0

    def work(self) -> None:
        self._say({"nurse": "here", "name": self._name, "address": self._address})
        while (orders := self._orders()) is not None:
            for order in orders:
                self._obey(order)
            self._listen()
            self._look(time.monotonic())

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
        self._selector.close()
        self._board.close()
        os.close(self._page)
        os.close(self._meeting)

    def _orders(self) -> list[dict[str, Any]] | None:
        """What the engine has sent. None where it has hung up."""
        self._ready = [key for key, _ in self._selector.select(LOOK)]
        if not any(key.fileobj is self._line for key in self._ready):
            return []
        received = self._line.recv(1 << 16)
        *lines, self._pending = (self._pending + received).split(b"\n")
        return [json.loads(line) for line in lines] if received else None

    def _obey(self, order: dict[str, Any]) -> None:
        child = self._child
        match order.pop("do"):
            case "start":
                self._start(**order)
            case "wishes":
                self._board.take(order["wishes"])
            case "form" if child:
                child.form(order["fields"])
            case "kill" if child:
                child.kill()
            case "where" if child:
                where = stack.ask(child.pid, child.place.stack, resume=order["resume"])
                self._say({"nurse": "where", "says": where})

    def _start(self, replica: int, work: dict[str, Any], wishes: list[int]) -> None:
        self._board.take(wishes)
        self._board.write(0, 0, board.Phase.START)
        program = self._ward.program(work)
        place = Place(
            replica,
            0,
            1,
            program.transport,
            self._page,
            self._meeting,
            stack.create(),
            os.getpid(),
            work,
            self._name,
            self._address,
        )
        try:
            self._child = self._spawn(program, place)
        except ClusterError as error:
            self._say({"event": "failed", "ours": True, "kind": "ClusterError", "message": str(error), "traceback": ""})
            self._say({"nurse": "ended", "code": error.exit_code, "at": self._at()})
            return
        self._selector.register(self._child.line, selectors.EVENT_READ)
        self._selector.register(self._child.pidfd, selectors.EVENT_READ)
        self._say({"nurse": "born", "pid": self._child.pid})

    def _spawn(self, program: Program, place: Place) -> Near:
        try:
            os.chdir(self._ward.folder)
        except OSError as error:
            raise ClusterError(
                f"node {self._name} cannot go to {self._ward.folder}, where the run was started ({error.strerror}); "
                f"all nodes need the same folders, as on a shared disk"
            ) from None
        return spawn(program, place)

    def _listen(self) -> None:
        child = self._child
        if child is None:
            return
        ready = [key.fileobj for key in self._ready]
        if child.line in ready or child.pidfd in ready:
            told = child.told()
            for event in told or []:
                self._say(event)
            if told is None and child.line in self._selector.get_map():
                self._selector.unregister(child.line)
        if child.pidfd in ready:
            self._ended(child)

    def _ended(self, child: Near) -> None:
        self._selector.unregister(child.pidfd)
        if child.line in self._selector.get_map():
            self._selector.unregister(child.line)
        self._child = None
        child.process.wait()
        self._say({"nurse": "ended", "code": child.code, "at": self._at()})
        child.close()

    def _look(self, now: float) -> None:
        if self._child is None or now - self._looked < LOOK:
            return
        self._looked, seen = now, vitals.read(self._child.pid)
        if seen is not None:
            self._say({"nurse": "look", "at": self._at(), "vitals": list(seen)})

    def _at(self) -> list[float]:
        """Step, phase, and how long ago it began: clocks of two hosts are not compared."""
        line = self._board.read(0)
        return [line.step, line.phase, time.monotonic() - line.since]

    def _say(self, event: Event) -> None:
        self._line.sendall(json.dumps(event).encode() + b"\n")
