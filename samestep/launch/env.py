"""The engine where others start the processes: torchrun, srun, a JobSet. Each starts one replica beside itself.

Process 0 leads: it keeps the journal and hears all replicas through their processes (launch/agent.py), its own as well.
There is one generation. With the first replica that is lost all end, with one line, and the launcher starts them again:
the run then goes on from its newest checkpoint, on as many processes as there are by then.
"""

import contextlib
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from samestep import __version__
from samestep.errors import ClusterError, PeerLost, SamestepError
from samestep.events import Event
from samestep.launch.agent import LOOK, SILENT, Agent, Make, farewell
from samestep.launch.child import as_error
from samestep.launch.cuts import Cuts
from samestep.launch.engine import OnEvent, Program
from samestep.launch.line import Line, encoded
from samestep.launch.lookout import Lookout
from samestep.launch.manners import scheduled
from samestep.launch.rendezvous import FAREWELL, Reception, answered, call
from samestep.launch.started import Started, started
from samestep.recover.protocol import Terms
from samestep.recover.silence import Finding, Look
from samestep.wire import tcp

PATIENCE = 300.0  # seconds in which all processes of a launch have to be there; SAMESTEP_PATIENCE gives others
SUSPECT = 1.5  # seconds that a replica which lost a peer is not believed to be the cause
TICK = 0.5  # seconds
GENERATION = 1


def here() -> tuple[Started, float]:
    """What the environment says of this process, and the seconds that it waits for others. ClusterError."""
    asked = os.environ.get("SAMESTEP_PATIENCE", str(PATIENCE))
    try:
        return started(os.environ), float(asked)
    except ValueError:
        raise ClusterError(f"SAMESTEP_PATIENCE is {asked!r}, but must be a number of seconds") from None


@dataclass
class Member:
    """A process as process 0 knows it. offset: of its clock, in seconds."""

    index: int
    line: Line
    host: str = "?"
    pid: int = 0
    address: str = ""
    port: int | None = None  # of its replica's door, once that has joined
    failure: Event | None = None
    finished: bool = False
    offset: float | None = None
    look: Look | None = None

    def see(self, seen: dict[str, Any], now: float, ours: float) -> None:
        """now: of its clock. ours: the same instant by ours."""
        if self.offset is None:
            self.offset = ours - now
        self.look = Look(**seen | {"since": seen["since"] + self.offset})

    def where(self, last: "Look | Last | None") -> str:
        step = f"step {last.step}, {last.phase}" if last and last.step else "at the start"
        return f"replica {self.index} on {self.host}, {step}"


class Last(NamedTuple):
    """What a replica did last."""

    step: int
    phase: str


class Env:
    """Process 0, from its start to its end. All others end as it does."""

    def __init__(self, me: Started, run: Path, patience: float) -> None:
        self._me, self._patience = me, patience
        self._stopping = False
        self._lines: list[Line] = []
        self._own: threading.Thread | None = None
        with contextlib.ExitStack() as stack:
            self._reception = Reception(me, run)
            stack.callback(self._reception.close)
            stack.push(self._dismiss)
            self._left = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.__exit__(kind, error, at)

    def stop(self) -> None:
        """Callable from a signal handler."""
        self._stopping = True

    def run(self, program: Program, terms: Terms, on_event: OnEvent) -> None:
        ours, theirs = socket.socketpair()
        self._lines = [Line(ours)]
        address = self._reception.address if self._me.size > 1 else ""
        agent = Agent(Line(theirs), 0, socket.gethostname(), address, self._me.local)
        self._own = threading.Thread(target=_led, args=(agent, theirs, program), name="samestep-agent")
        self._own.start()
        others = self._reception.receive(self._patience, lambda: self._stopping)
        self._lines += [Line(others[index]) for index in sorted(others)]
        members = [Member(index, line) for index, line in enumerate(self._lines)]
        for member in members[1:]:
            member.address = member.line.connection.getpeername()[0]
        members[0].address = address
        with scheduled(os.SCHED_BATCH):
            _Company(program, members, on_event).run(lambda: self._stopping)

    def _dismiss(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        """Tell all others how it ended. Those that nobody has received yet call for a moment more."""
        said = farewell(error)
        if len(self._lines) < self._me.size:  # nobody has to be there for an error, and all for a run that is done
            self._reception.turn_away(encoded(said), FAREWELL if error else self._patience)
        for line in self._lines:
            line.say(said)
        if self._own is not None:
            self._own.join()
        for line in self._lines:
            line.close()


def follow(me: Started, run: Path, patience: float, prepare: Callable[[], Make]) -> None:
    """What all other processes do, to the end of the run; raises the error that ended it, if one did.

    prepare: called once process 0 is found; what it raises ends the run for all.
    """
    called, make = call(me, run, patience), _prepared(prepare)
    while not answered(called):
        called = call(me, run, patience)
    line = Line(called.line)
    with contextlib.closing(line):
        agent = Agent(line, me.index, socket.gethostname(), called.address, me.local)
        with _signals(agent):
            agent.run(make)


def _prepared(prepare: Callable[[], Make]) -> Make:
    try:
        return prepare()
    except SamestepError as error:
        wrong = error

    def refuse(work: dict[str, Any]) -> Program:
        raise wrong

    return refuse


@contextlib.contextmanager
def _signals(agent: Agent) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: agent.stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _led(agent: Agent, line: socket.socket, program: Program) -> None:
    """The agent of process 0 itself. The end that it is told of is raised elsewhere."""
    with line, contextlib.suppress(SamestepError):
        agent.run(lambda work: program)


class _Company:
    """The replicas of the one generation, heard by one thread."""

    def __init__(self, program: Program, members: list[Member], on_event: OnEvent) -> None:
        self._program, self._members, self._on_event = program, members, on_event
        self._formed = self._told_to_stop = False
        self._cuts, self._lookout, self._looked = Cuts(GENERATION), Lookout(None), time.monotonic()
        self._suspects: dict[
            int, SamestepError
        ] = {}  # replicas that lost a peer: what to say where no other is to blame
        self._until = 0.0  # they are not believed to be the cause
        self._hears: dict[str, Callable[[Member, Event], None]] = {
            "here": self._on_here,
            "joined": self._on_joined,
            "look": self._on_look,
            "unreachable": partial(self._on_link, "unreachable"),
            "reachable": partial(self._on_link, "reachable"),
            "waiting": self._on_waiting,
            "failed": self._on_failed,
            "exited": self._on_exited,
            "stop": self._on_stop,
        }

    def run(self, stopping: Callable[[], bool]) -> None:
        for member in self._members:
            member.line.say({"do": "work", "work": self._program.work})
        with selectors.DefaultSelector() as selector:
            for member in self._members:
                selector.register(member.line, selectors.EVENT_READ, member)
            while not all(member.finished for member in self._members):
                for key, _ in selector.select(TICK):
                    self._hear(key.data)
                if stopping() and not self._told_to_stop:
                    self._stop()
                self._judge(time.monotonic())

    def _hear(self, member: Member) -> None:
        told = member.line.heard()
        for event in told or []:
            self._said(member, event)
        if told is None:
            self._lost(member, "ended without a word, or its host did", member.look)

    def _said(self, member: Member, event: Event) -> None:
        name = event.pop("event")
        if name in self._hears:
            self._hears[name](member, event)
        else:
            self._on_event({"event": name} | event | {"rank": member.index})

    def _on_here(self, member: Member, event: Event) -> None:
        member.host, member.pid = event["host"], event["pid"]
        if event["version"] != __version__:
            raise ClusterError(
                f"process {member.index} on {member.host} has samestep {event['version']}, and process 0 "
                f"{__version__}; install the same everywhere"
            )

    def _on_joined(self, member: Member, event: Event) -> None:
        member.port = event.get("port", 0)
        if all(member.port is not None for member in self._members):
            self._form()

    def _on_link(self, kind: str, member: Member, event: Event) -> None:
        self._cuts.said(member.index, event | {"event": kind}, time.monotonic())

    def _on_waiting(self, member: Member, event: Event) -> None:
        lost = f"{member.where(member.look)} lost its peers, and none of them has ended; look at the network"
        self._suspect(member, ClusterError(lost))

    def _on_failed(self, member: Member, event: Event) -> None:
        member.failure = event
        if member.pid == 0:  # it has not even started its replica
            self._lost(member, "failed", None)

    def _on_exited(self, member: Member, event: Event) -> None:
        if event["clean"] and not member.failure and self._formed:
            member.finished = True
        else:
            self._lost(member, event["how"], Last(event["step"], event["phase"]))

    def _on_look(self, member: Member, event: Event) -> None:
        member.see(event["look"], event["now"], time.monotonic())

    def _on_stop(self, member: Member, event: Event) -> None:
        """As if it had been asked of this process."""
        signal.raise_signal(signal.SIGTERM)

    def _lost(self, member: Member, how: str, last: "Last | Look | None") -> None:
        where = member.where(last)
        if member.failure:
            error = as_error(member.failure, where)
        else:
            look = f"look at {self._program.logs}/replica-{member.index}.log"
            error = ClusterError(f"a replica {how} ({where}, pid {member.pid}); all others were stopped; {look}")
        told = {"step": last.step, "phase": last.phase} if last else {"step": 0, "phase": "start"}
        self._on_event({"event": "left", "replica": member.index, "reason": str(error)} | told)
        if not isinstance(error, PeerLost):
            raise error
        self._suspect(member, error)

    def _suspect(self, member: Member, error: SamestepError) -> None:
        """It has lost a peer, which may be the cause, and may not be known yet."""
        self._until = self._until or time.monotonic() + SUSPECT
        self._suspects.setdefault(member.index, error)

    def _judge(self, now: float) -> None:
        if self._suspects and now >= self._until:
            raise next(iter(self._suspects.values()))
        for member in self._members:
            if member.index and tcp.silence(member.line.connection) > SILENT:
                raise ClusterError(f"host {member.host} ({member.where(member.look)}) does not answer")
        self._judge_links(now)
        if now - self._looked >= LOOK:
            self._looked = now
            looks = {m.index: m.look for m in self._members if m.look and not m.finished}
            for found in self._lookout.judge(looks, now, self._cuts.concerned):
                self._silent(found)

    def _judge_links(self, now: float) -> None:
        hosts = {m.index: f"{m.host}" for m in self._members if not m.finished}
        judgement = self._cuts.judge(hosts, now, self._program.ends_silent)
        for event in judgement.events:
            self._on_event(event)
        for reason in judgement.given_up.values():
            raise ClusterError(f"{reason}; all were stopped")

    def _silent(self, found: Finding) -> None:
        ends = found.fence and self._program.ends_silent
        event = {"event": "silent", "replica": found.replica, "kind": found.kind, "step": found.step}
        self._on_event(event | {"phase": found.phase, "reason": found.sentence, "ended": ends})
        if ends:
            raise ClusterError(f"{found.sentence}; all were stopped")

    def _stop(self) -> None:
        if not self._formed:
            raise ClusterError("the run was asked to stop before its first step")
        self._told_to_stop = True
        for member in self._members:
            member.line.say({"do": "stop"})

    def _form(self) -> None:
        self._formed, size = True, len(self._members)
        reason = f"{size} processes were started, one replica each"
        told = {"event": "formed", "generation": GENERATION, "replicas": size, "step": -1, "restored": True}
        self._on_event(told | {"reason": reason})
        fields = {
            "do": "form",
            "generation": GENERATION,
            "members": list(range(size)),
            "before": [],
            "held": -1,
            "step": -1,
            "token": secrets.token_hex(32),
            "hosts": list(range(size)),  # each is told of as a host of its own, whatever host it is on
        }
        for me in self._members:
            addresses = [None if member is me else (member.address, member.port) for member in self._members]
            me.line.say(fields | {"addresses": addresses})
