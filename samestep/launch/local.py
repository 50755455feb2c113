"""The local engine: one process a replica, on this host or on hosts that share its kernel, started and watched by this
one.

Replicas of one host are connected by socket pairs made here, so no port is opened and nothing has a name that could be
left behind; those of different hosts are told where to call each other (wire/meeting.py). The end of a process is
learnt from its pidfd, at once, whatever the others wait for. Who goes on with whom is decided in
recover/membership.py; here it is done.
"""

import contextlib
import os
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

from samestep.errors import ClusterError, SamestepError
from samestep.events import Event
from samestep.launch.cause import Causes
from samestep.launch.child import Child, spawn
from samestep.launch.cuts import Cuts
from samestep.launch.engine import OnEvent, Program
from samestep.launch.hosts import Address, choose, far, numbers, sharers
from samestep.launch.lookout import Lookout, Seat
from samestep.launch.manners import scheduled
from samestep.recover import protocol
from samestep.recover.membership import Membership
from samestep.recover.protocol import End, Exited, Finished, Form, Gather, Joined, Kill, Start, Terms, Waiting
from samestep.recover.silence import Finding
from samestep.replica import board, stack
from samestep.replica.board import Board
from samestep.replica.place import Place

PATIENCE = 1.0  # seconds that a replica which lost a peer is not believed to be the cause
TICK = 0.5  # seconds
LOOK = 1.0  # seconds between two looks at what replicas do


class Local:
    def __init__(self) -> None:
        self._company: _Company | None = None

    def stop(self) -> None:
        """Callable from a signal handler."""
        if self._company is not None:
            self._company.stop()

    def run(self, program: Program, terms: Terms, on_event: OnEvent) -> None:
        with contextlib.ExitStack() as stack:
            company = self._company = _Company(program, terms, on_event)
            stack.callback(company.close)
            stack.callback(self._forget)
            company.run()

    def _forget(self) -> None:
        self._company = None


class _Company:
    """The replicas of one run, and the machine that decides about them."""

    def __init__(self, program: Program, terms: Terms, on_event: OnEvent) -> None:
        self._program, self._terms, self._on_event = program, terms, on_event
        self._usual = os.sched_getscheduler(0)  # the policy of replicas
        self._membership = Membership(terms)
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._slots = max(terms.lanes, terms.replicas)
        self._page, self._meeting = board.create(self._slots), os.memfd_create("samestep-meeting")
        self._board = Board(self._page, self._slots)
        self._lookout, self._looked = Lookout(self._board), time.monotonic()
        self._stopping = self._told_to_stop = False
        self._cuts, self._cut_off = Cuts(), set[str]()  # hosts that were given up
        self._suspects: dict[int, float] = {}  # replicas that lost a peer -> until when
        self._causes = Causes(program.logs)
        self._cause: SamestepError | None = None
        self._does: dict[type, Callable[..., None]] = {
            Form: self._form,
            Gather: lambda action: self._board.ask_to_gather(action.generation),
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
            for key, _ in self._selector.select(TICK):
                self._hear(key.data, ended=key.fileobj == key.data.pidfd)
            if self._stopping and not self._told_to_stop:
                self._told_to_stop = True
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
        self._selector.close()
        self._board.close()
        os.close(self._page)
        os.close(self._meeting)

    # What is heard

    def _hear(self, child: Child, ended: bool) -> None:
        told = child.told()
        for event in told or []:
            self._said(child, event)
        if told is None and child.line.fileno() in self._selector.get_map():
            self._selector.unregister(child.line)
        if ended and child.replica in self._children:
            self._ended(child)

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
        self._selector.unregister(child.pidfd)
        if child.process.wait() == 0 and not child.failure and self._rank(child.replica) is not None:
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
        seats = {replica: Seat(child.place.slot, child.process.pid) for replica, child in self._children.items()}
        for found in self._lookout.look(seats, now, self._cuts.concerned):
            self._silent(found)

    def _judge_links(self, now: float) -> None:
        """End those that a cut link parts from the rest."""
        hosts = {replica: child.place.host for replica, child in self._children.items()}
        judgement = self._cuts.judge(hosts, now, self._program.ends_silent)
        for event in judgement.events:
            self._on_event(event)
        if judgement.over:
            self._board.end(self._membership.generation)
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
        stacks = [stack.ask(child.process.pid, child.place.stack, resume=ends) for child in blamed]
        reason = found.sentence + "".join(f"; it is in {said}" for said in stacks if said)
        self._on_event(event | {"phase": found.phase, "reason": reason, "ended": ends})
        for child in blamed if ends else []:
            child.silence = reason
            self._handle(protocol.Silent(child.replica, found.sentence))

    def _lost(self, child: Child) -> None:
        at = self._board.read(child.place.slot)
        error = self._causes.error(child, at)
        self._cause = self._cause or error
        told = child.failure or child.silence or child.process.poll() is None  # which may only have lost its peers
        reason = str(error) if told else f"replica {child.replica} {child.end()}"
        left = {"event": "left", "replica": child.replica, "step": at.step, "phase": at.phase.name.lower()}
        self._on_event(left | {"reason": reason})
        if self._rank(child.replica) is not None:
            self._board.end(self._membership.generation)
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
        slot = min(set(range(self._slots)) - taken)
        program = self._program
        host = choose(program.hosts, [child.place.host for child in self._children.values()], self._cut_off)
        self._board.write(slot, 0, board.Phase.START)
        place = Place(
            replica,
            slot,
            self._slots,
            program.transport,
            self._page,
            self._meeting,
            stack.create(),
            os.getpid(),
            program.work,
            host.name,
            host.address,
        )
        with scheduled(self._usual):
            child = self._children[replica] = spawn(program, place, host.start)
        self._selector.register(child.line, selectors.EVENT_READ, child)
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)

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
        addresses = {replica: far(replica, action.members, doors) for replica in action.members}
        hosts = numbers(action.members, doors)
        sharing = sharers(hosts) if self._program.transport == "shared memory" else []
        with _pairs(addresses) as ends, _shared(sharing) as memory:
            for replica, host in zip(action.members, hosts, strict=True):
                if replica in self._children:
                    descriptors = [end.fileno() for end in ends[replica].values()] + memory.get(host, [])
                    told = fields | {"addresses": addresses[replica], "hosts": hosts}
                    self._children[replica].form(told, descriptors)

    def _work(self) -> dict[str, object]:
        first = self._membership.generation == 1
        return self._program.work if first or self._program.restore is None else self._program.restore()

    def _kill(self, action: Kill) -> None:
        if action.replica in self._children:
            self._children[action.replica].kill()

    def _end(self, action: End) -> None:
        raise self._cause or ClusterError(f"{action.reason}; all were stopped")

    def _bury(self, child: Child) -> None:
        del self._children[child.replica]
        self._cuts.gone(child.replica)
        if child.line.fileno() in self._selector.get_map():
            self._selector.unregister(child.line)
        child.close()

    def _rank(self, replica: int) -> int | None:
        members = self._membership.members
        return members.index(replica) if replica in members else None


@contextlib.contextmanager
def _pairs(addresses: Mapping[int, Sequence[Address | None]]) -> Iterator[dict[int, dict[int, socket.socket]]]:
    """The connected sockets of each two that have no address for each other, by member and peer, each in the order of
    `addresses`, the members; closed here once their owners have them.
    """
    ends: dict[int, dict[int, socket.socket]] = {replica: {} for replica in addresses}
    with contextlib.ExitStack() as stack:
        for (left, _), (right, places) in combinations(addresses.items(), 2):
            if places[list(addresses).index(left)] is None:
                one, other = socket.socketpair()
                ends[left][right], ends[right][left] = stack.enter_context(one), stack.enter_context(other)
        yield ends


@contextlib.contextmanager
def _shared(hosts: Sequence[int]) -> Iterator[dict[int, list[int]]]:
    """By host the file of which each member of a generation there fills a part. It has no name."""
    with contextlib.ExitStack() as stack:
        files = {}
        for host in hosts:
            files[host] = [os.memfd_create("samestep-wire")]
            stack.callback(os.close, *files[host])
        yield files
