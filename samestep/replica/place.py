"""A replica's place: its number, its line to the engine, and the generations that it is a member of.

The engine sends JSON lines, one at a time: the place first, then a formation for each generation, with the connected
sockets of that generation beside it and, where they share memory, the file of it.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samestep.errors import ClusterError, SamestepError
from samestep.events import Event
from samestep.replica import stack
from samestep.replica.board import Board, Phase, Wish
from samestep.replica.links import Links
from samestep.replica.spent import Spent
from samestep.wire.meeting import Door, meet

if TYPE_CHECKING:
    from samestep.wire.collective import Collective

CONTROL = "SAMESTEP_CONTROL"  # environment variable: the descriptor of the line to the engine
Connections = dict[int, socket.socket]  # by rank
MOST_DESCRIPTORS = 253  # that Linux passes in one message (SCM_MAX_FD)


@dataclass(frozen=True)
class Place:
    """What a process is born with. `replica` is its number, given once and never again; `slot` its line on the board.

    `host` is the name that the recipe has for its host, `address` where replicas of other hosts reach it; both are
    empty where there is one host.

    `board` (of `slots` lines), `stack` (where it answers where its code is) and `meeting` (where torch's transport
    finds its peers) are descriptors of shared memory without a name.

    `shard` is this process's part of the model. The first one's engine is the engine, the others' is the first.
    """

    replica: int
    slot: int
    slots: int
    transport: str
    board: int
    meeting: int
    stack: int
    engine: int  # process id
    work: dict[str, Any]  # what is to be done; the verb's business
    host: str = ""
    address: str = ""
    local: int = 0  # its number among the replicas that share the GPUs of its host
    shard: int = 0


@dataclass(frozen=True)
class Formation:
    """A new generation, as one of its members is told of it.

    members: replicas in rank order. before: those of the generation whose division of the state is still followed.
    held, step: that generation, and the step committed, to which the member settles first. work: where it is there, all
    set themselves up anew by it. hosts: by rank, the number of its host. connections: by rank, descriptors of connected
    sockets, to those on the same host. memory: of what these share, where there are some or no other hosts. addresses:
    by rank, where those on other hosts are called. token: what only members know, in hexadecimal digits.
    """

    generation: int
    members: list[int]
    before: list[int]
    held: int
    step: int
    work: dict[str, Any] | None
    hosts: list[int]
    connections: dict[int, int]
    addresses: dict[int, tuple[str, int]]
    token: str
    memory: int | None = None


class Control:
    """A replica's line to the engine: events as JSON lines, the phase through the board, formations back."""

    def __init__(self, line: socket.socket, place: Place) -> None:
        self._line, self.place = line, place
        self._sending = threading.Lock()  # a checkpoint is told of by the thread that writes it
        self._board = Board(place.board, place.slots)
        self.spent = Spent(time.monotonic())
        self.mates: list[socket.socket] = []  # lines to the other processes of this replica
        self.door: Door | None = None  # where replicas of other hosts call

    def joined(self) -> None:
        """Say that all is prepared, and where one can be called. ClusterError where nobody could."""
        self.door = _door(self.place) if self.place.address else None
        self.send({"event": "joined"} | ({"port": self.door.port} if self.door else {}))

    def formation(self) -> Formation:
        """Wait for the next generation that this replica is a member of."""
        fields, descriptors = receive(self._line)
        descriptors = self._passed_on(fields, descriptors)
        far = {rank: (at[0], at[1]) for rank, at in enumerate(fields.pop("addresses")) if at}
        near = [rank for rank, r in enumerate(fields["members"]) if r != self.place.replica and rank not in far]
        connections, memory = dict(zip(near, descriptors, strict=False)), descriptors[len(near) :]
        return Formation(**fields, connections=connections, addresses=far, memory=memory[0] if memory else None)

    def _passed_on(self, fields: dict[str, Any], descriptors: list[int]) -> list[int]:
        """What of the descriptors is for this process; the others are its mates', in their order."""
        each = len(descriptors) // (1 + len(self.mates))
        for shard, mate in enumerate(self.mates, start=1):
            theirs = descriptors[shard * each : (shard + 1) * each]
            post(mate, fields, theirs)
            for descriptor in theirs:
                os.close(descriptor)
        return descriptors[:each]

    def send(self, event: Event) -> None:
        """Of a replica that is split the first process speaks for all; the others tell it why they fail."""
        if self.place.shard == 0 or event["event"] == "failed":
            self.pass_on(json.dumps(event).encode() + b"\n")

    def pass_on(self, lines: bytes) -> None:
        with self._sending:
            self._line.sendall(lines)

    def failed(self, error: BaseException) -> None:
        """Report an error. One that is not ours is named by its type; the traceback goes along for --debug."""
        ours = isinstance(error, SamestepError)
        self.send(
            {
                "event": "failed",
                "ours": ours,
                "kind": type(error).__name__ if ours else "SamestepError",
                "message": str(error) if ours else f"{type(error).__name__}: {error}".splitlines()[0],
                "traceback": "".join(traceback.format_exception(error)),
            }
        )

    def wish(self, generation: int) -> Wish:
        """What the engine wishes to happen after this step."""
        return self._board.wish(generation)

    def is_over(self, generation: int) -> bool:
        """Whether the engine has ended it, since a member is gone."""
        return self._board.is_over(generation)

    def phase(self, step: int, phase: Phase) -> None:
        if self.place.shard == 0:
            self._board.write(self.place.slot, step, phase)
        self.spent.enter(phase, time.monotonic())


def connect(environment: Mapping[str, str]) -> Control:
    """Take up the place that the engine has prepared. ClusterError when not started by an engine."""
    if CONTROL not in environment:
        raise ClusterError("a replica is started by an engine, not by hand; use samestep train RECIPE")
    line = socket.socket(fileno=int(environment[CONTROL]))
    place = Place(**receive(line)[0])
    _die_with(place.engine)
    stack.register(place.stack)
    return Control(line, place)


def post(line: socket.socket, fields: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one JSON line; descriptors travel with its first byte. OSError where nobody reads it any more."""
    data = json.dumps(fields).encode() + b"\n"
    sent = socket.send_fds(line, [data], descriptors) if descriptors else 0
    line.sendall(data[sent:])


def receive(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What the engine has posted. ClusterError where it is gone."""
    data, descriptors, *_ = socket.recv_fds(line, 1, MOST_DESCRIPTORS)
    while data and not data.endswith(b"\n"):
        more = line.recv(1 << 16)  # nothing is posted before the last line is taken up
        data = data + more if more else b""
    if not data:
        raise ClusterError("the engine that started this replica is gone")
    return json.loads(data), descriptors


def open_wire(control: Control, formation: Formation) -> "Collective":
    """The transport that the verb chose, for this generation. PeerLost where it ends before all are connected."""
    chosen = control.place.transport
    if chosen == "shared memory" and formation.memory is None:
        chosen = "sockets"  # this one is alone on its host
    elif chosen == "shared memory" and formation.addresses:
        chosen = "joined"
    kinds = {"shared memory": _shared_memory, "joined": _joined, "sockets": _sockets, "torch": _torch}
    return kinds[chosen](control, formation)


def only_wire(control: Control) -> "Collective":
    """For work that ends with its first generation."""
    control.joined()
    return open_wire(control, control.formation())


def _shared_memory(control: Control, formation: Formation) -> "Collective":
    from samestep.wire.shared_memory import SharedMemory

    rank, members = formation.members.index(control.place.replica), formation.members
    assert formation.memory is not None  # the engine makes it for this transport
    return SharedMemory(rank, len(members), _near(formation), formation.memory, formation.generation, members)


def _sockets(control: Control, formation: Formation) -> "Collective":
    from samestep.wire.sockets import Sockets

    rank, members = formation.members.index(control.place.replica), formation.members
    links = Links(control, formation.generation, members)
    near, far = _connected(control, formation, rank, links)
    wire = Sockets(rank, len(members), near | far, formation.generation, members, formation.hosts)
    if formation.addresses:
        links.follow(wire)
    return wire


def _joined(control: Control, formation: Formation) -> "Collective":
    from samestep.wire.joined import Joined

    rank, members = formation.members.index(control.place.replica), formation.members
    links = Links(control, formation.generation, members)
    near, far = _connected(control, formation, rank, links)
    assert formation.memory is not None  # the engine makes it where a host has several members
    wire = Joined(rank, near, far, formation.memory, formation.hosts, formation.generation, members)
    links.follow(wire)
    return wire


def _connected(control: Control, formation: Formation, rank: int, links: Links) -> tuple[Connections, Connections]:
    """To the members on this host and to those on others. Where these are not reached nothing is left open."""
    with contextlib.ExitStack() as until_all_are_there:
        if formation.memory is not None:
            until_all_are_there.callback(os.close, formation.memory)
        near = _near(formation)
        for connection in near.values():
            until_all_are_there.enter_context(connection)
        far = _far(control, formation, rank, links)
        until_all_are_there.pop_all()
    return near, far


def _near(formation: Formation) -> Connections:
    return {rank: socket.socket(fileno=descriptor) for rank, descriptor in formation.connections.items()}


def _far(control: Control, formation: Formation, rank: int, links: Links) -> Connections:
    """Connections to the members on other hosts."""
    if not formation.addresses:
        return {}
    assert control.door is not None  # who has said where it is called gets addresses
    return meet(control.door, rank, formation.addresses, formation.generation, bytes.fromhex(formation.token), links)


def _door(place: Place) -> Door:
    try:
        return Door(place.address)
    except OSError as error:
        raise ClusterError(
            f"replica {place.replica} was to be called at {place.address}, run.hosts.{place.host}.address, but cannot "
            f"listen there ({error.strerror}); give an address of that host"
        ) from None


def _torch(control: Control, formation: Formation) -> "Collective":
    from samestep.wire.torch_backend import TorchBackend

    place = control.place
    rank, meeting = formation.members.index(place.replica), Path(f"/proc/self/fd/{place.meeting}")
    return TorchBackend(rank, len(formation.members), meeting, formation.generation)


def _die_with(engine: int) -> None:
    """Ask Linux for SIGKILL when the engine dies, so that no replica is ever left."""
    if sys.platform == "linux":
        import ctypes
        import signal

        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != engine:
        raise ClusterError("the engine that started this replica is gone")
