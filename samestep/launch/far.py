"""Replicas on nodes that the engine does not see, each looked after by a nurse that calls here (launch/nurse.py).

Where nurses are, and whether more of them come, is a scheduler's business. One that has called and has no replica is
room for one. The end of a replica is told by its nurse, and that of a nurse, or of its whole node, by the end of its
line: neither waits for a scheduler to find out. A node that is cut off has no end, so a line on which Linux has got no
answer for some seconds is given up.
"""

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samestep.errors import ClusterError
from samestep.events import Event
from samestep.launch import handshake
from samestep.launch.child import Child
from samestep.launch.company import Heard
from samestep.launch.lookout import Seat
from samestep.launch.vitals import Vitals
from samestep.replica.board import Board, Phase
from samestep.replica.place import Place
from samestep.wire import tcp
from samestep.wire.meeting import GUESTS, Door

GIVE_UP = 8.0  # seconds that a node's kernel may owe an answer, as between replicas (launch/cuts.py)
FRESH = 2.5  # seconds that a nurse's look counts; one comes each second
FENCE = 2.0  # seconds that a nurse has to end a replica
REST = 64.0  # seconds at most that a nurse rests whose replicas end again and again
CALM = 10 * REST  # seconds that a replica has lived which does not count as such
ASK = 1.0  # seconds that a nurse has to say where a replica's code is


class Nurse:
    """The engine's end of a nurse's line. name, address: of its node; empty until it has said them."""

    def __init__(self, line: socket.socket) -> None:
        self.line, self.name, self.address = line, "", ""
        self.child: Far | None = None
        self.rests = 0.0  # until then no replica is started there but in haste
        self.ends = 0  # of its replicas, since one of them has lived for long
        self._pending, self._waiting = b"", list[Event]()

    def told(self) -> list[Event] | None:
        """All that it has said; None where it has hung up and nothing is left."""
        said, self._waiting = self._waiting, []
        while True:
            try:
                received = self.line.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return said
            except OSError:
                received = b""
            if not received:
                return said or None
            *lines, self._pending = (self._pending + received).split(b"\n")
            said += map(json.loads, lines)

    def order(self, do: str, **fields: Any) -> None:
        """Nothing where it is gone: its line tells that too."""
        with contextlib.suppress(OSError):
            self.line.sendall(json.dumps({"do": do} | fields).encode() + b"\n")

    def ask(self, do: str, **fields: Any) -> Event | None:
        """What it says to an order, within ASK seconds. All else that comes meanwhile is kept for `told`."""
        self.order(do, **fields)
        until = time.monotonic() + ASK
        while time.monotonic() < until:
            said = self.told() or []
            found = next((event for event in said if event.get("nurse") == do), None)
            self._waiting = [event for event in said if event is not found]
            if found is not None:
                return found
            time.sleep(0.01)
        return None


def ends_in_a_row(before: int, lived: float) -> int:
    """Of replicas that ended early, with one that has lived so many seconds."""
    return 1 if lived >= CALM else before + 1


@dataclass
class Far(Child):
    nurse: Nurse
    began: float = 0.0  # when it was ordered
    born: int = 0  # process id there
    ended: int | None = None  # its code
    told: Vitals | None = None
    heard: float = 0.0  # when that was
    doomed: float | None = field(default=None)  # since when

    @property
    def pid(self) -> int:
        return self.born

    @property
    def code(self) -> int | None:
        return self.ended

    @property
    def over(self) -> bool:
        return self.lost or self.ended is not None

    def seat(self) -> Seat:
        """Nothing is concluded from looks that have not come, as on a network that is slow for a while."""
        fresh = not self.over and time.monotonic() - self.heard < FRESH
        return Seat(self.place.slot, None, self.told if fresh else None)

    def where(self, *, resume: bool) -> str:
        said = self.nurse.ask("where", resume=resume)
        return said["says"] if said else ""

    def form(self, fields: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        self.generation = fields["generation"]
        self.nurse.order("form", fields=fields)

    def kill(self) -> None:
        self.doomed = self.doomed or time.monotonic()
        self.nurse.order("kill")

    def close(self) -> None:
        """Its nurse is dismissed where it has not ended, and ends it then."""
        if not self.over:
            self.nurse.line.close()


@dataclass
class _Guest:
    """Somebody calls, and has yet to prove that it is a nurse."""

    line: socket.socket
    asked: bytes
    until: float
    said: bytes = b""


class Nodes:
    """All nodes, for the replicas of one run. address: of this host, where nurses call."""

    def __init__(self, address: str, token: bytes, page: Board, slots: int, work: dict[str, Any]) -> None:
        self._token, self.board, self._slots, self._work = token, page, slots, work
        self._door = Door(address)
        self.engine = address, self._door.port
        self._guests: list[_Guest] = []
        self._nurses: list[Nurse] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._door.listener, selectors.EVENT_READ, self._door)
        self._rooms = 0

    def close(self) -> None:
        """All nurses hear of it, and end what they look after."""
        for guest in self._guests:
            guest.line.close()
        for nurse in self._nurses:
            nurse.line.close()
        self._door.close()
        self._selector.close()

    def watch(self, descriptor: int, ended: Callable[[], ClusterError]) -> None:
        """Let `hear` raise what `ended` says once the descriptor, such as that of a process, can be read."""
        self._selector.register(descriptor, selectors.EVENT_READ, ended)

    @property
    def idle(self) -> list[Nurse]:
        return [nurse for nurse in self._nurses if nurse.name and nurse.child is None]

    def start(self, replica: int, slot: int, hosts: Sequence[str], avoided: Collection[str]) -> Far:
        free = sorted((nurse for nurse in self.idle if nurse.name not in avoided), key=lambda nurse: nurse.name)
        if not free:
            raise ClusterError(f"replica {replica} was to be started, but no node has room for it; add one")
        nurse = free[0]
        place = Place(replica, slot, self._slots, "", -1, -1, -1, os.getpid(), {}, nurse.name, nurse.address)
        nurse.child = Far(place, nurse, began=time.monotonic())
        nurse.order("start", replica=replica, work=self._work, wishes=self.board.wishes())
        return nurse.child

    def hear(self, seconds: float) -> Iterator[Heard | int]:
        for key, _ in self._selector.select(seconds):
            match key.data:
                case Door():
                    self._accept(time.monotonic())
                case _Guest() as guest:
                    self._listen(guest)
                case Nurse() as nurse if nurse in self._nurses:
                    yield from self._told(nurse)
                case Nurse():
                    pass  # it was dismissed just now
                case ended:
                    raise ended()
        yield from self._overdue(time.monotonic())
        rooms = sum(nurse.rests <= time.monotonic() for nurse in self.idle)
        if self._rooms != rooms:
            self._rooms = rooms
            yield rooms

    def form(self, told: Mapping[int, dict[str, Any]], children: Mapping[int, Child]) -> None:
        for replica, fields in told.items():
            if replica in children:
                children[replica].form(fields)

    def wishes(self) -> None:
        for nurse in self._nurses:
            nurse.order("wishes", wishes=self.board.wishes())

    def bury(self, child: Child) -> None:
        """One that still lives goes with its nurse."""
        assert isinstance(child, Far)
        child.nurse.child = None
        if not child.over:
            self._dismiss(child.nurse)

    # Who calls

    def _accept(self, now: float) -> None:
        with contextlib.suppress(OSError):  # accept(2) tells of errors of the new connection, which is gone then
            line, _ = self._door.listener.accept()
            tcp.tune(line)
            guest = _Guest(line, handshake.challenge(), now + handshake.PATIENCE)
            line.sendall(guest.asked)
            self._guests.append(guest)
            self._selector.register(line, selectors.EVENT_READ, guest)
        if len(self._guests) > GUESTS:
            self._hang_up(self._guests[0])

    def _listen(self, guest: _Guest) -> None:
        if guest not in self._guests:  # it has had to go just now
            return
        try:
            more = guest.line.recv(handshake.CALL - len(guest.said), socket.MSG_DONTWAIT)
        except OSError:
            more = b""
        guest.said += more
        if len(guest.said) == handshake.CALL:
            self._judge(guest)
        elif not more:
            self._hang_up(guest)

    def _judge(self, guest: _Guest) -> None:
        proof = handshake.answer(self._token, guest.asked, guest.said)
        if proof is None:
            self._hang_up(guest)
            return
        self._guests.remove(guest)
        guest.line.sendall(proof)
        nurse = Nurse(guest.line)
        self._nurses.append(nurse)
        self._selector.modify(guest.line, selectors.EVENT_READ, nurse)

    def _hang_up(self, guest: _Guest) -> None:
        self._guests.remove(guest)
        self._selector.unregister(guest.line)
        guest.line.close()

    # What nurses say

    def _told(self, nurse: Nurse) -> Iterator[Heard]:
        told = nurse.told()
        child = nurse.child
        events = [event for event in told or [] if not self._own(nurse, event)]
        if told is None:
            yield from self._gone(nurse)
        elif child is not None:
            if child.ended is not None:
                now = time.monotonic()
                nurse.child, nurse.ends = None, ends_in_a_row(nurse.ends, now - child.began)
                nurse.rests = now + min(2.0 ** (nurse.ends - 1), REST)
            yield Heard(child, events, child.ended is not None)

    def _own(self, nurse: Nurse, event: Event) -> bool:
        """Take up what a nurse says for itself; False for what its replica says."""
        child = nurse.child
        match event.get("nurse"):
            case None:
                return False
            case "here":
                nurse.name, nurse.address = event["name"], event["address"]
            case "born" if child:
                child.born = event["pid"]
            case "look" if child:
                child.told, child.heard = Vitals(*event["vitals"]), time.monotonic()
                self._write(child, *event["at"])
            case "ended" if child:
                child.ended = event["code"]
                self._write(child, *event["at"])
        return True

    def _write(self, child: Far, step: int, phase: int, age: float) -> None:
        """Where it is, on the engine's own board. What has not changed keeps its time, whatever the network takes."""
        was = self.board.read(child.place.slot)
        since = time.monotonic() - age
        if (was.step, was.phase) != (step, phase) or abs(since - was.since) > 0.5:
            self.board.write(child.place.slot, step, Phase(phase), since)

    def _overdue(self, now: float) -> Iterator[Heard]:
        for guest in [guest for guest in self._guests if now >= guest.until]:
            self._hang_up(guest)
        for nurse in list(self._nurses):
            doomed = nurse.child and nurse.child.doomed
            if tcp.silence(nurse.line) >= GIVE_UP or (doomed and now - doomed >= FENCE):
                yield from self._gone(nurse)

    def _gone(self, nurse: Nurse) -> Iterator[Heard]:
        """Its replica ends with it: the nurse has lost its line too, or is dead."""
        child, nurse.child = nurse.child, None
        self._dismiss(nurse)
        if child is not None and child.ended is None:
            child.lost = True
            yield Heard(child, [], True)

    def _dismiss(self, nurse: Nurse) -> None:
        self._nurses.remove(nurse)
        self._selector.unregister(nurse.line)
        nurse.line.close()
