"""How the replicas of different hosts come to be connected, and nobody else with them.

Of each two the lower rank calls and the higher one accepts. A caller begins with a proof that it knows the secret of
the generation, and is answered with another one, so the secret itself never travels. Both are compared whole, in
constant time, and nothing of them is parsed. Whoever says something else, too little or too late is hung up on.
"""

import contextlib
import hmac
import math
import os
import selectors
import socket
import struct
import time
from collections.abc import Mapping
from typing import Protocol

from samestep.wire import tcp

MAGIC = b"samestep"
HEAD = struct.Struct("<QII")  # generation, rank of the caller, rank of the one called
PROOF = 32  # bytes of an HMAC-SHA256
HELLO = len(MAGIC) + HEAD.size + PROOF
PATIENCE = 5.0  # seconds that a caller has for its hello: it is lost and sent again on a link that is cut for 2 s
ATTEMPT = 2.0  # seconds until a call that nobody takes is made anew; Linux itself would wait longer and longer
PAUSE = 0.2  # seconds between two calls
GUESTS = 64  # callers that are listened to at once; the oldest has to go for one more
WAITING = 128  # calls that Linux keeps for a replica that does not accept just now
TURN = 0.25  # seconds

Address = tuple[str, int]


class Watcher(Protocol):
    """Hears which peers are reached, and ends the meeting."""

    def calls(self, rank: int, answered: bool) -> None:
        """It is called in vain, or about to be for the first time. answered: its host has refused."""

    def reached(self, rank: int, connection: socket.socket) -> None:
        """Its host has answered."""

    def look(self) -> None:
        """Called a few times a second. PeerLost where nobody should wait any longer."""


class Door:
    """Where other replicas call: a free port at one address of this host, never at all of them. OSError."""

    def __init__(self, address: str) -> None:
        self.listener = tcp.new_socket(address)
        try:
            self.listener.bind((address, 0))
            self.listener.listen(WAITING)
        except OSError:
            self.listener.close()
            raise
        self.port: int = self.listener.getsockname()[1]

    def close(self) -> None:
        self.listener.close()


def hello(token: bytes, generation: int, caller: int, called: int) -> bytes:
    head = MAGIC + HEAD.pack(generation, caller, called)
    return head + hmac.digest(token, head, "sha256")


def answer(token: bytes, said: bytes) -> bytes:
    """To a hello."""
    return hmac.digest(token, b"answer" + said, "sha256")


def meet(
    door: Door, rank: int, addresses: Mapping[int, Address], generation: int, token: bytes, watcher: Watcher
) -> dict[int, socket.socket]:
    """A connection to each rank in `addresses`, however long it takes: the watcher ends what should not go on.

    token: the secret of the generation.
    """
    with contextlib.closing(_Meeting(door, rank, addresses, generation, token, watcher)) as meeting:
        while len(meeting.made) < len(addresses):
            meeting.turn(time.monotonic())
            watcher.look()
        made, meeting.made = meeting.made, {}
        return made


class _Line:
    """A connection on which nothing is agreed yet. rank: the one called; None where somebody else calls.

    until: when it is hung up. due: bytes to hear.
    """

    def __init__(self, connection: socket.socket, rank: int | None, until: float, due: int) -> None:
        self.connection, self.rank, self.until, self.due = connection, rank, until, due
        self.said = b""
        self.greeted = False  # the one called has been sent a hello

    def hear(self) -> bool:
        """Whether all that was due has been said. OSError where it will not be."""
        with contextlib.suppress(BlockingIOError):
            more = self.connection.recv(self.due - len(self.said))
            if not more:
                raise ConnectionResetError("hung up")
            self.said += more
        return len(self.said) == self.due


class _Meeting:
    def __init__(
        self, door: Door, rank: int, addresses: Mapping[int, Address], generation: int, token: bytes, watcher: Watcher
    ) -> None:
        self.made: dict[int, socket.socket] = {}
        self._door, self._addresses, self._token, self._watcher = door, addresses, token, watcher
        self._hellos = {r: hello(token, generation, min(r, rank), max(r, rank)) for r in addresses}
        self._due = {r: 0.0 for r in addresses if r > rank}  # to be called, and not before
        self._awaited = {r for r in addresses if r < rank}
        self._lines: list[_Line] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(door.listener, selectors.EVENT_READ)
        for called in self._due:
            watcher.calls(called, answered=False)

    def turn(self, now: float) -> None:
        for rank in [rank for rank, at in self._due.items() if now >= at]:
            self._call(rank, now)
        for key, _ in self._selector.select(TURN):
            if key.data is None:
                self._accept(now)
            elif key.data in self._lines:  # it may have had to go for another one just now
                self._serve(key.data, now)
        for line in [line for line in self._lines if now >= line.until]:
            self._hang_up(line, now, answered=False)

    def close(self) -> None:
        for connection in (*self.made.values(), *(line.connection for line in self._lines)):
            connection.close()
        self._selector.close()

    def _call(self, rank: int, now: float) -> None:
        del self._due[rank]
        connection = tcp.new_socket(self._addresses[rank][0])
        connection.connect_ex(self._addresses[rank])  # what has failed at once cannot be written to, and fails there
        self._add(_Line(connection, rank, now + ATTEMPT, PROOF), selectors.EVENT_WRITE)

    def _accept(self, now: float) -> None:
        with contextlib.suppress(OSError):  # accept(2) tells of errors of the new connection, which is gone then
            connection, _ = self._door.listener.accept()
            connection.setblocking(False)
            self._add(_Line(connection, None, now + PATIENCE, HELLO), selectors.EVENT_READ)
        guests = [line for line in self._lines if line.rank is None]
        if len(guests) > GUESTS:
            self._hang_up(guests[0], now, answered=False)

    def _add(self, line: _Line, events: int) -> None:
        self._lines.append(line)
        self._selector.register(line.connection, events, line)

    def _serve(self, line: _Line, now: float) -> None:
        try:
            if line.rank is not None and not line.greeted:
                self._greet(line, line.rank)
            elif line.hear():
                self._agree(line)
        except OSError as error:
            self._hang_up(line, now, answered=isinstance(error, ConnectionRefusedError | ConnectionResetError))

    def _greet(self, line: _Line, rank: int) -> None:
        """The one called is there. It may answer much later: it may have a model to build first."""
        if error := line.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
        tcp.tune(line.connection)
        line.connection.sendall(self._hellos[rank])  # so few bytes always have room in a new connection
        line.greeted, line.until = True, math.inf
        self._selector.modify(line.connection, selectors.EVENT_READ, line)
        self._watcher.reached(rank, line.connection)

    def _agree(self, line: _Line) -> None:
        """All is said. ConnectionAbortedError where it is not what a replica of this generation says."""
        rank = self._caller(line) if line.rank is None else self._called(line, line.rank)
        self._forget(line)
        self.made[rank] = line.connection
        self._watcher.reached(rank, line.connection)

    def _caller(self, line: _Line) -> int:
        for rank in self._awaited:
            if hmac.compare_digest(line.said, self._hellos[rank]):
                tcp.tune(line.connection)
                line.connection.sendall(answer(self._token, line.said))
                self._awaited.discard(rank)  # whoever says it once more is a stranger
                return rank
        raise ConnectionAbortedError("a stranger calls")

    def _called(self, line: _Line, rank: int) -> int:
        if not hmac.compare_digest(line.said, answer(self._token, self._hellos[rank])):
            raise ConnectionAbortedError("a stranger answers")
        return rank

    def _hang_up(self, line: _Line, now: float, answered: bool) -> None:
        self._forget(line)
        line.connection.close()
        if line.rank is not None:
            self._due[line.rank] = now + PAUSE
            self._watcher.calls(line.rank, answered)

    def _forget(self, line: _Line) -> None:
        self._lines.remove(line)
        self._selector.unregister(line.connection)
