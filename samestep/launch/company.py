"""The replicas of one run, and the machine that decides about them. Where they run is the ground's business.

Who goes on with whom is decided in recover/membership.py; here it is done.
"""

import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from samestep.errors import ClusterError, SamestepError
from samestep.events import Event
from samestep.launch.cause import Causes
from samestep.launch.child import Child
from samestep.launch.cuts import Cuts
from samestep.launch.engine import OnEvent, Program
from samestep.launch.hosts import far, numbers
from samestep.launch.lookout import Lookout
from samestep.launch.manners import scheduled
from samestep.recover import protocol
from samestep.recover.membership import Membership
from samestep.recover.protocol import End, Exited, Finished, Form, Gather, Joined, Kill, Start, Terms, Waiting
from samestep.recover.silence import Finding
from samestep.replica import board
from samestep.replica.board import Board

PATIENCE = 1.0  # seconds that a replica which lost a peer is not believed to be the cause
TICK = 0.5  # seconds
LOOK = 1.0  # seconds between two looks at what replicas do


class Heard(NamedTuple):
    """Of one replica: what it has said, and whether that was its end."""

    child: Child
    events: list[Event]
    ended: bool


class Ground(Protocol):
    """Where replicas run, and how they are heard of."""

    def start(self, replica: int, slot: int, hosts: Sequence[str], avoided: Collection[str]) -> Child:
        """hosts: of the living replicas. avoided: hosts that were cut off. ClusterError where it cannot be started."""

    def hear(self, seconds: float) -> Iterable[Heard | int]:
        """What has come, after waiting for something so long. A number: so many more could be started now."""

    def form(self, told: Mapping[int, dict[str, Any]], children: Mapping[int, Child]) -> None:
        """Tell each of a generation, by replica, and connect those that share a host."""

    def wishes(self) -> None:
        """Bring what the board's last line says to those that do not see it."""

    def bury(self, child: Child) -> None:
        """Nothing of it is left, and no process."""


class Company:
    def __init__(self, ground: Ground, page: Board, program: Program, terms: Terms, on_event: OnEvent) -> None:
        self._ground, self._board = ground, page
        self._program, self._terms, self._on_event = program, terms, on_event
        self._membership = Membership(terms)
        self._children: dict[int, Child] = {}
        self._lookout, self._looked = Lookout(page), time.monotonic()
        self._stopping = self._told_to_stop = False
        self._cuts, self._cut_off = Cuts(), set[str]()  # hosts that were given up
        self._suspects: dict[int, float] = {}  # replicas that lost a peer -> until when
        self._causes = Causes(program.logs)
        self._cause: SamestepError | None = None
        self._does: dict[type, Callable[..., None]] = {
            Form: self._form,
            Gather: self._gather,
            Start: self._replace,
            Kill: self._kill,
            End: self._end,
        }

    def stop(self) -> None:
        self._board.ask_to_stop()
        self._stopping = True

    def run(self) -> None:
        with scheduled(os.SCHED_BATCH):
            self._go_on()

    def _go_on(self) -> None:
        for replica in range(self._terms.replicas):
            self._start(replica)
        while not self._membership.done:
            for heard in self._ground.hear(TICK):
                self._hear(heard)
            if self._stopping and not self._told_to_stop:
                self._told_to_stop = True
                self._ground.wishes()
                self._handle(protocol.StopAsked())
            self._judge()
            self._look(time.monotonic())
            self._judge_links(time.monotonic())
            self._handle(protocol.Ticked())

    def close(self) -> None:
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.close()

    # What is heard

    def _hear(self, heard: Heard | int) -> None:
        if isinstance(heard, int):
            self._handle(protocol.Room(heard))
            return
        for event in heard.events:
            self._said(heard.child, event)
        if heard.ended and heard.child.replica in self._children:
            self._ended(heard.child)

    def _said(self, child: Child, event: Event) -> None:
        match event.pop("event"):
            case "joined":
                child.port = event.get("port", 0)
                self._handle(Joined(child.replica))
            case "unreachable" | "reachable" as link:
                self._cuts.said(child.replica, event | {"event": link}, time.monotonic())
                self._lookout.forget()  # who has waited for a link may need some time after it is mended
            case "waiting" if self._program.restore is None:
                self._suspects[child.replica] = time.monotonic() + PATIENCE
            case "waiting":
                self._handle(Waiting(child.replica, **event))
            case "failed":
                child.failure = event
            case name:
                self._on_event({"event": name} | event | {"rank": self._rank(child.replica)})

    def _ended(self, child: Child) -> None:
        if child.code == 0 and not child.failure and self._rank(child.replica) is not None:
            self._handle(Finished(child.replica))
            self._bury(child)
        elif child.failure and child.failure["kind"] == "PeerLost":
            self._suspects.setdefault(child.replica, time.monotonic() + PATIENCE)
        else:
            self._lost(child)

    def _judge(self) -> None:
        """A replica that lost a peer is the cause only where no other turns out to be."""
        alone = len(self._suspects) == len(self._children)
        for replica, until in list(self._suspects.items()):
            if alone or time.monotonic() >= until:
                del self._suspects[replica]
                self._lost(self._children[replica])

    def _look(self, now: float) -> None:
        """Name those that hang, and end them as the program says."""
        if now - self._looked < LOOK:
            return
        self._looked = now
        seats = {replica: child.seat() for replica, child in self._children.items()}
        if any(seat.pid is None and seat.told is None for seat in seats.values()):
            self._lookout.forget()  # who waits for one of whom nothing has come is not stuck by himself
            return
        for found in self._lookout.look(seats, now, self._cuts.concerned):
            self._silent(found)

    def _judge_links(self, now: float) -> None:
        """End those that a cut link parts from the rest."""
        hosts = {replica: child.place.host for replica, child in self._children.items()}
        judgement = self._cuts.judge(hosts, now, self._program.ends_silent)
        for event in judgement.events:
            self._on_event(event)
        if judgement.over:
            self._end_generation()
        for replica, reason in judgement.given_up.items():
            child = self._children[replica]
            child.silence = reason
            self._cut_off.add(child.place.host)
            self._handle(protocol.Silent(replica, reason))

    def _silent(self, found: Finding) -> None:
        blamed = [child for child in self._children.values() if found.replica in (child.replica, None)]
        ends = found.fence and self._program.ends_silent
        event = {"event": "silent", "replica": found.replica, "kind": found.kind, "step": found.step}
        # A stopped one may go on to answer: nobody has gone on without it yet.
        stacks = [child.where(resume=ends) for child in blamed]
        reason = found.sentence + "".join(f"; it is in {said}" for said in stacks if said)
        self._on_event(event | {"phase": found.phase, "reason": reason, "ended": ends})
        for child in blamed if ends else []:
            child.silence = reason
            self._handle(protocol.Silent(child.replica, found.sentence))

    def _lost(self, child: Child) -> None:
        at = self._board.read(child.place.slot)
        error = self._causes.error(child, at)
        self._cause = self._cause or error
        reason = str(error) if child.failure or child.silence else f"replica {child.replica} {child.end()}"
        left = {"event": "left", "replica": child.replica, "step": at.step, "phase": at.phase.name.lower()}
        self._on_event(left | {"reason": reason})
        if self._rank(child.replica) is not None:
            self._end_generation()
        self._bury(child)
        fatal = self._program.restore is None or self._causes.returns(child, at.step)
        self._handle(Exited(child.replica, reason, fatal))
        self._cause = None

    # What is done

    def _handle(self, event: protocol.Event) -> None:
        for action in self._membership.handle(event, time.monotonic()):
            self._does[type(action)](action)

    def _start(self, replica: int) -> None:
        taken = {child.place.slot for child in self._children.values()}
        slot = min(set(range(slots(self._terms))) - taken)
        self._board.write(slot, 0, board.Phase.START)
        hosts = [child.place.host for child in self._children.values()]
        self._children[replica] = self._ground.start(replica, slot, hosts, self._cut_off)

    def _replace(self, action: Start) -> None:
        try:
            self._start(action.replica)
        except ClusterError as error:
            self._handle(Exited(action.replica, str(error)))

    def _form(self, action: Form) -> None:
        fields = {
            "generation": action.generation,
            "members": action.members,
            "before": action.before,
            "held": action.held,
            "step": action.step,
            "work": self._work() if action.restore else None,
            "token": secrets.token_hex(32),
        }
        told = {"event": "formed", "generation": action.generation, "replicas": len(action.members)}
        self._on_event(told | {"step": action.step, "restored": action.restore, "reason": action.reason})
        self._lookout.forget()
        self._cuts = Cuts(action.generation)
        doors = {r: (c.place.host, (c.place.address, c.port)) for r, c in self._children.items()}
        fields["hosts"] = numbers(action.members, doors)
        addresses = {replica: far(replica, action.members, doors) for replica in action.members}
        self._ground.form({r: fields | {"addresses": addresses[r]} for r in action.members}, self._children)

    def _work(self) -> dict[str, object]:
        first = self._membership.generation == 1
        return self._program.work if first or self._program.restore is None else self._program.restore()

    def _gather(self, action: Gather) -> None:
        self._board.ask_to_gather(action.generation)
        self._ground.wishes()

    def _end_generation(self) -> None:
        self._board.end(self._membership.generation)
        self._ground.wishes()

    def _kill(self, action: Kill) -> None:
        if action.replica in self._children:
            self._children[action.replica].kill()

    def _end(self, action: End) -> None:
        raise self._cause or ClusterError(f"{action.reason}; all were stopped")

    def _bury(self, child: Child) -> None:
        del self._children[child.replica]
        self._cuts.gone(child.replica)
        self._ground.bury(child)

    def _rank(self, replica: int) -> int | None:
        members = self._membership.members
        return members.index(replica) if replica in members else None


def slots(terms: Terms) -> int:
    """Lines that the board of a run needs."""
    return max(terms.lanes, terms.replicas)
