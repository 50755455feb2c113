"""The links to the replicas on other hosts, watched while a generation meets and works.

A link that is cut fails nothing here: it may be mended, and who is to go is the engine's to say. It says so through the
board, since nothing that a dead host would have sent can wake those that wait for it.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from samestep.errors import PeerLost
from samestep.wire import tcp

if TYPE_CHECKING:
    from samestep.replica.place import Control
    from samestep.wire.joined import Joined
    from samestep.wire.sockets import Sockets

LOOK = 0.5  # seconds between two looks
UNREACHABLE = 3.0  # seconds of silence; Linux asks once a second, so two questions had no answer


class Links:
    """members: replicas by rank. One thread at a time calls it: the one that meets, then the one of `follow`."""

    def __init__(self, control: "Control", generation: int, members: Sequence[int]) -> None:
        self._control, self._generation, self._members = control, generation, members
        self._called: dict[int, float] = {}  # ranks that have not answered -> since when
        self._connections: dict[int, socket.socket] = {}
        self._told: set[int] = set()  # ranks that the engine takes for unreachable

    def calls(self, rank: int, answered: bool) -> None:
        now, lost = time.monotonic(), self._connections.pop(rank, None)
        since = now if answered or lost is not None else self._called.get(rank, now)
        self._called[rank] = since

    def reached(self, rank: int, connection: socket.socket) -> None:
        self._called.pop(rank, None)
        self._connections[rank] = connection

    def look(self) -> None:
        """Tell the engine what has changed. PeerLost where it has ended the generation."""
        if self._control.is_over(self._generation):
            raise PeerLost(f"generation {self._generation} is over: a replica of it is gone")
        now = time.monotonic()
        silences = {rank: now - since for rank, since in self._called.items()}
        for rank, connection in self._connections.items():
            with contextlib.suppress(OSError):  # closed just now: the wire ends, or says itself what is wrong
                silences[rank] = tcp.silence(connection)
        for rank, seconds in silences.items():
            self._judge(rank, seconds)

    def follow(self, wire: "Sockets | Joined") -> None:
        """Look on until the wire is closed."""
        threading.Thread(target=self._follow, args=(wire,), name="samestep-links", daemon=True).start()

    def _judge(self, rank: int, seconds: float) -> None:
        if seconds >= UNREACHABLE and rank not in self._told:
            self._told.add(rank)
            self._tell("unreachable", rank, {"seconds": round(seconds, 3)})
        elif seconds < UNREACHABLE and rank in self._told:
            self._told.discard(rank)
            self._tell("reachable", rank, {})

    def _tell(self, event: str, rank: int, more: dict[str, float]) -> None:
        said = {"event": event, "peer": self._members[rank], "generation": self._generation}
        self._control.send(said | more)

    def _follow(self, wire: "Sockets | Joined") -> None:
        try:
            while not wire.closed.wait(LOOK):
                self.look()
        except PeerLost as error:
            wire.cancel(str(error))
