"""One connection of `shared_memory.py`: what has been shown over it, what is due, what came before it was due."""

import socket
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from samestep.errors import PeerLost
from samestep.wire import frames
from samestep.wire.frames import HEADER, Outbox, Outgoing
from samestep.wire.segments import Place, Segment

PLACE = struct.Struct("<QQQ")  # as Place; all zero: the payload follows
FRAME = HEADER.size + PLACE.size
RELEASED = 0  # in the place of the operation: the message of that number, in that of the step, is not needed any more
NOTHING = memoryview(b"")
READ = 1 << 16  # bytes a system call: place for 1 MB made anew took 34 us a message


class Arrival(NamedTuple):
    """A message. number: of those from this peer that lie in shared memory; place: of such a one."""

    header: bytes
    place: Place | None
    number: int
    inline: bytearray


class Due(NamedTuple):
    header: bytes
    target: Tensor
    account: "Account"
    place: int  # among those that the exchange receives from this peer


@dataclass
class Account:
    """What is still to happen to the messages of one exchange. copies: what arrives is copied to its target at once."""

    copies: bool
    due: int = 0  # messages that have not arrived
    out: int = 0  # messages that a peer has not released or, of those with their payload, the kernel not taken
    found: dict[int, list[Tensor]] = field(default_factory=dict)
    borrowed: list[tuple["Peer", int]] = field(default_factory=list)

    def message_done(self) -> None:
        self.out -= 1


@dataclass
class Copy:
    """A copy of a tensor in shared memory, for several peers."""

    segment: Segment
    readers: int = 0


class Lent(NamedTuple):
    account: Account
    copy: Copy | None


class Peer:
    """One connection: what is due from there, what came before it was due, what is not released yet."""

    def __init__(self, rank: int, replica: int, connection: socket.socket) -> None:
        self.rank, self.replica, self.connection = rank, replica, connection
        self.outbox = Outbox(connection)
        self.due: deque[Due] = deque()
        self.early: deque[Arrival] = deque()
        self.lent: dict[int, Lent] = {}
        self.gone: PeerLost | None = None  # nothing more will come from there
        self.waits_to_send = False  # as the poll knows it
        self._shown = self._seen = 0  # messages in shared memory so far, to it and from it
        self._data, self._read = bytearray(), bytearray(READ)
        frames.prepare(connection)

    def show(self, header: bytes, place: Place, lent: Lent) -> None:
        self.lent[self._shown] = lent
        self._shown += 1
        self.outbox.queue.append(Outgoing(header + PLACE.pack(*place), NOTHING, None))

    def send(self, header: bytes, tensor: Tensor, account: Account) -> None:
        self.outbox.queue.append(Outgoing(header + PLACE.pack(0, 0, 0), frames.payload(tensor), account))

    def release(self, number: int) -> None:
        self.outbox.queue.append(Outgoing(HEADER.pack(0, number, RELEASED, 0, 0, 0) + bytes(PLACE.size), NOTHING, None))

    def receive(self) -> list[Arrival]:
        """What has come and is whole; where nothing more will, this peer is gone."""
        try:
            count, why = self.connection.recv_into(self._read), "connection closed"
        except OSError as error:
            count, why = 0, str(error)
        if not count:
            self.gone = PeerLost(f"replica {self.replica} went away ({why})")
        self._data += memoryview(self._read)[:count]
        return list(self._whole())

    def owes(self) -> bool:
        return bool(self.due or self.lent)

    def _whole(self) -> Iterator[Arrival]:
        at = 0
        while (end := self._end(at)) <= len(self._data):
            yield self._arrival(at, end)
            at = end
        del self._data[:at]

    def _end(self, at: int) -> int:
        """Where the message that begins at a byte ends; beyond what is here if it is not whole."""
        if at + FRAME > len(self._data):
            return at + FRAME
        *_, size = HEADER.unpack_from(self._data, at)
        in_memory = PLACE.unpack_from(self._data, at + HEADER.size)[1]
        return at + FRAME + (0 if in_memory else size)

    def _arrival(self, at: int, end: int) -> Arrival:
        place = Place(*PLACE.unpack_from(self._data, at + HEADER.size))
        self._seen += bool(place.size)
        header = bytes(self._data[at : at + HEADER.size])
        return Arrival(header, place if place.size else None, self._seen - 1, self._data[at + FRAME : end])
