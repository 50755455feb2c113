"""A replica's place: its number, its connections, its line to the engine. Sent by the engine as one JSON line."""

import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samestep.errors import ClusterError, SamestepError
from samestep.events import Event
from samestep.replica.board import Board, Phase

if TYPE_CHECKING:
    from samestep.wire.collective import Collective

CONTROL = "SAMESTEP_CONTROL"  # environment variable: the descriptor of the line to the engine


@dataclass(frozen=True)
class Place:
    """`connections` maps peers to descriptors of connected sockets; `board` and `meeting` (where torch's
    transport finds its peers) are descriptors of shared memory without a name.
    """

    rank: int
    size: int
    transport: str
    connections: dict[int, int]
    board: int
    meeting: int
    engine: int  # process id
    work: dict[str, Any]  # what is to be done; the verb's business


class Control:
    """A replica's line to the engine: events as JSON lines, the phase through the board."""

    def __init__(self, line: socket.socket, place: Place) -> None:
        self._line, self.place = line, place
        self._sending = threading.Lock()  # a checkpoint is told of by the thread that writes it
        self._board = Board(place.board, place.size)

    def send(self, event: Event) -> None:
        with self._sending:
            self._line.sendall(json.dumps(event).encode() + b"\n")

    def failed(self, error: BaseException) -> None:
        """Report an error. One that is not ours is named by its type; the traceback goes along for --debug."""
        ours = isinstance(error, SamestepError)
        self.send(
            {
                "event": "failed",
                "kind": type(error).__name__ if ours else "SamestepError",
                "message": str(error) if ours else f"{type(error).__name__}: {error}".splitlines()[0],
                "traceback": "".join(traceback.format_exception(error)),
            }
        )

    def phase(self, step: int, phase: Phase) -> None:
        self._board.write(self.place.rank, step, phase)


def connect(environment: Mapping[str, str]) -> Control:
    """Take up the place that the engine has prepared. ClusterError when not started by an engine."""
    if CONTROL not in environment:
        raise ClusterError("a replica is started by an engine, not by hand; use samestep train RECIPE")
    line = socket.socket(fileno=int(environment[CONTROL]))
    with line.makefile("rb") as reader:
        fields = json.loads(reader.readline())
    fields["connections"] = {int(peer): descriptor for peer, descriptor in fields["connections"].items()}
    place = Place(**fields)
    _die_with(place.engine)
    return Control(line, place)


def open_wire(place: Place) -> "Collective":
    """The transport that the verb chose."""
    return {"sockets": _sockets, "torch": _torch}[place.transport](place)


def _sockets(place: Place) -> "Collective":
    from samestep.wire.sockets import Sockets

    connections = {peer: socket.socket(fileno=fd) for peer, fd in place.connections.items()}
    return Sockets(place.rank, place.size, connections)


def _torch(place: Place) -> "Collective":
    from samestep.wire.torch_backend import TorchBackend

    return TorchBackend(place.rank, place.size, Path(f"/proc/self/fd/{place.meeting}"))


def _die_with(engine: int) -> None:
    """Ask Linux for SIGKILL when the engine dies, so that no replica is ever left."""
    if sys.platform == "linux":
        import ctypes
        import signal

        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != engine:
        raise ClusterError("the engine that started this replica is gone")
