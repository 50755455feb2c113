"""Ray as an engine: it finds the places for replicas, on nodes that come and go; all else is as ever.

An actor in each place is a nurse (launch/nurse.py), which starts a replica there and calls this process. So this is
the engine of launch/company.py on the ground of launch/far.py, and Ray is only spoken with by launch/broker.py. What
has begun goes on with whatever is left, and a place that Ray finds later is room for one more replica.
"""

import collections
import contextlib
import importlib.util
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from samestep.errors import ClusterError, RecipeError
from samestep.events import Event
from samestep.launch.broker import Wanted
from samestep.launch.company import Company, slots
from samestep.launch.engine import OnEvent, Program
from samestep.launch.far import Nodes
from samestep.launch.hosts import HERE
from samestep.launch.nurse import Ward
from samestep.recover.protocol import Terms
from samestep.replica import board
from samestep.replica.board import Board

ANSWER = 15.0  # seconds that a cluster's head has to answer a call
CONNECT = 180.0  # seconds until Ray must have connected, or started; 9 on a small machine, more than 60 on a busy one
# Until the places must be there that the cluster has room for: another job may have taken them, and actors have taken
# more than 60 to start on a busy machine.
PLACES = 180.0  # seconds
END = 20.0  # seconds that Ray has to give all back
WRITES = 5.0  # seconds that processes of a cluster whose broker had to be killed may still write files
ALWAYS = 1 << 30  # replacements; a place comes back only where one was lost, and a step that kills still ends the run
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "1"}


class Ray:
    """address: of a cluster's head, HOST:PORT; None: a private cluster for the time of the run. ClusterError where Ray
    is not installed: a run then gets no folder.
    """

    def __init__(self, address: str | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ClusterError('--engine ray needs Ray, which is not installed; pip install "samestep[ray]"')
        self._address = address
        self._company: Company | None = None
        self._stopped = False

    def stop(self) -> None:
        """Callable from a signal handler."""
        self._stopped = True
        if self._company is not None:
            self._company.stop()

    def run(self, program: Program, terms: Terms, on_event: OnEvent) -> None:
        _check(program, self._address)
        with contextlib.ExitStack() as stack:
            folder = None if self._address else stack.enter_context(_folder())
            wanted = Wanted(self._address, folder, terms.replicas, program.threads, terms.replace, program.gpus)
            broker = stack.enter_context(_broker(wanted, program.logs))
            nodes = stack.enter_context(_nodes(broker, program, terms))
            there = self._wait(broker, nodes, terms)
            begun = replace(terms, replicas=there, short=terms.replicas - there, restarts=ALWAYS, backoff=0.0)
            company = self._company = Company(nodes, nodes.board, program, begun, on_event)
            stack.callback(company.close)
            stack.callback(self._forget)
            company.run()

    def _wait(self, broker: "_Broker", nodes: Nodes, terms: Terms) -> int:
        """For all places that there are; how many these are. ClusterError where they are too few."""
        until, least = time.monotonic() + PLACES, terms.minimum or terms.replicas
        while not self._stopped:
            collections.deque(nodes.hear(0.2), maxlen=0)  # nobody is there to be heard of yet
            room, there = broker.room(), min(len(nodes.idle), terms.replicas)
            if room is not None and room < least:
                raise ClusterError(_few(least, f"has {room}"))
            late = time.monotonic() > until
            if there >= least and (late or there >= min(terms.replicas, room or terms.replicas)):
                return there
            if late:
                raise ClusterError(_few(least, f"gave {there} within {PLACES:.0f} s"))
        raise ClusterError("stopped while Ray looked for places")

    def _forget(self) -> None:
        self._company = None


@dataclass
class _Broker:
    """The process that speaks with Ray, and the line to it."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    log: Path | None
    pending: bytes = b""
    places: int | None = None

    def say(self, fields: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # it has ended, which `hear` finds out
            self.line.sendall(json.dumps(fields).encode() + b"\n")

    def hear(self, seconds: float) -> list[Event]:
        """ClusterError where it has ended."""
        if not select.select([self.line], [], [], seconds)[0]:
            return []
        received = self.line.recv(1 << 16)
        if not received:
            raise self.ended()
        *lines, self.pending = (self.pending + received).split(b"\n")
        events: list[Event] = list(map(json.loads, lines))
        for event in events:
            if event["event"] == "failed":
                raise ClusterError(f"Ray says: {event['reason']}{self._look()}")
        return events

    def room(self) -> int | None:
        """Places of the cluster; None where it has not said so yet."""
        for event in self.hear(0):
            self.places = event["places"]
        return self.places

    def ended(self) -> ClusterError:
        return ClusterError(f"the head of the Ray cluster is lost, and all replicas with it{self._look()}")

    def _look(self) -> str:
        return f"; look at {self.log}" if self.log else ""


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """For the files of a private cluster. The broker deletes it too, in case this process is killed."""
    made = tempfile.mkdtemp(prefix="samestep-ray-")
    try:
        yield made
    finally:
        until = time.monotonic() + WRITES
        while Path(made).exists() and time.monotonic() < until:
            shutil.rmtree(made, ignore_errors=True)
            time.sleep(0.1)


@contextlib.contextmanager
def _broker(wanted: Wanted, logs: Path | None) -> Iterator[_Broker]:
    """Nothing of it is left at the end, nor of a private cluster."""
    ours, theirs = socket.socketpair()
    log = logs / "ray.log" if logs else None
    with ours, theirs, contextlib.ExitStack() as stack:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        output = stack.enter_context(log.open("ab")) if log else subprocess.DEVNULL
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "samestep.launch.broker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | QUIET | ({} if wanted.address else _own()),
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is the engine's to handle
        )
        theirs.close()
        stack.callback(_end, process)
        stack.callback(ours.close)
        broker = _Broker(process, ours, log)
        broker.say(asdict(wanted))
        yield broker


def _own() -> dict[str, str]:
    """Of a private cluster: nobody else can give it orders, and replicas do not give way to all other processes."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_worker_niceness": "0"}


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END)
    except subprocess.TimeoutExpired:
        process.kill()  # Ray's own processes end with it
        process.wait()


@contextlib.contextmanager
def _nodes(broker: _Broker, program: Program, terms: Terms) -> Iterator[Nodes]:
    """Where the nurses call that the broker asks Ray for."""
    own, token = _connected(broker), secrets.token_bytes(32)
    page = board.create(slots(terms))
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, page)
        lines = stack.enter_context(contextlib.closing(Board(page, slots(terms))))
        nodes = stack.enter_context(contextlib.closing(Nodes(own, token, lines, slots(terms), program.work)))
        logs = str(program.logs.resolve()) if program.logs else None
        command, threads = tuple(program.command), program.threads
        here = str(Path.cwd())
        ward = Ward(nodes.engine, token.hex(), command, sys.executable, program.transport, threads, logs, here)
        broker.say(asdict(ward))
        pidfd = os.pidfd_open(broker.process.pid)
        stack.callback(os.close, pidfd)
        nodes.watch(pidfd, broker.ended)
        yield nodes


def _connected(broker: _Broker) -> str:
    """The address of this machine in the cluster."""
    until = time.monotonic() + CONNECT
    while time.monotonic() < until:
        for event in broker.hear(1.0):
            return str(event["own"])
    raise ClusterError(f"Ray has not answered within {CONNECT:.0f} s; look at {broker.log}, or use --engine local")


def _check(program: Program, address: str | None) -> None:
    if program.shards > 1:
        raise RecipeError("--engine ray is for replicas of one process, but compute.shards is above 1; leave it out")
    if program.transport == "torch":
        raise RecipeError("sync.strategy fast is for one host, but was asked for with --engine ray; use exact")
    if tuple(program.hosts) != (HERE,):
        raise RecipeError("run.hosts is for --engine local, and Ray finds hosts by itself; leave run.hosts out")
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise RecipeError(f"--address is {address!r}, but must be HOST:PORT of a Ray cluster's head")
        try:
            socket.create_connection((host, int(port)), ANSWER).close()
        except (OSError, OverflowError) as error:
            what = f"nobody answers at {address} ({error}); give the address that ray start --head has printed"
            raise ClusterError(f"{what}, or leave --address out for a private cluster") from None


def _few(replicas: int, there: str) -> str:
    return (
        f"{replicas} replicas were asked for, but the Ray cluster {there} of the places that they need; add nodes, "
        f"or lower --replicas or run.minimum"
    )
