"""The local engine: one process a replica on this host, started and watched by this one.

Replicas are connected by socket pairs made here, so no port is opened and nothing has a name that could be
left behind. The end of a process is learnt from its pidfd, at once, whatever the others wait for.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from samestep import errors
from samestep.errors import ClusterError, SamestepError
from samestep.events import Event
from samestep.launch.engine import OnEvent, Program
from samestep.replica import board
from samestep.replica.board import Board
from samestep.replica.place import CONTROL, Place

# glibc gives freed activations back to the kernel and gets them again each step, in several heaps: at 2,048 tokens a
# step of a 14 M model that cost 37,000 page faults and a tenth of the memory. Huge pages make a step of a 135 M model a
# tenth faster. Its caches of small blocks hold the splinters beside an aligned tensor, so that no tensor of that size
# fits there again: without them the same step takes 12 % less memory and no more time. A user's own settings go first.
MALLOC = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
}
PATIENCE = 1.0  # seconds that a replica which lost a peer is not believed to be the cause


@dataclass
class _Child:
    rank: int
    process: subprocess.Popen[bytes]
    pidfd: int
    line: socket.socket
    pending: bytes = b""
    failure: Event | None = None


class Local:
    def run(self, program: Program, replicas: int, on_event: OnEvent) -> None:
        with contextlib.ExitStack() as stack:
            page, meeting = board.create(replicas), os.memfd_create("samestep-meeting")
            stack.callback(os.close, page)
            stack.callback(os.close, meeting)
            phases = Board(page, replicas)
            stack.callback(phases.close)
            children: list[_Child] = []
            stack.callback(_end, children)
            for child in _start(program, replicas, page, meeting):
                children.append(child)
            _watch(children, phases, program.logs, on_event)


def _start(program: Program, replicas: int, page: int, meeting: int) -> Iterator[_Child]:
    """Start the replicas one by one; connections are closed here once their owners have them."""
    ends: list[dict[int, socket.socket]] = [{} for _ in range(replicas)]
    for left, right in combinations(range(replicas), 2):
        ends[left][right], ends[right][left] = socket.socketpair()
    try:
        for rank in range(replicas):
            connections = {peer: end.fileno() for peer, end in ends[rank].items()}
            place = Place(rank, replicas, program.transport, connections, page, meeting, os.getpid(), program.work)
            yield _spawn(program, place)
    finally:
        for end in (e for row in ends for e in row.values()):
            end.close()


def _spawn(program: Program, place: Place) -> _Child:
    ours, theirs = socket.socketpair()
    with theirs, _log(program.logs, place.rank) as log:
        environment = (
            MALLOC
            | os.environ
            | {
                CONTROL: str(theirs.fileno()),
                "OMP_NUM_THREADS": str(program.threads),
                "GLOO_SOCKET_IFNAME": "lo",
                "PYTHONUNBUFFERED": "1",
            }
        )
        try:
            process = subprocess.Popen(
                program.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[theirs.fileno(), place.board, place.meeting, *place.connections.values()],
                start_new_session=True,  # Ctrl-C is the engine's to handle
            )
        except OSError as error:
            ours.close()
            raise ClusterError(
                f"replica {place.rank} could not be started ({error}); nothing is left running"
            ) from error
    ours.sendall(json.dumps(asdict(place)).encode() + b"\n")
    return _Child(place.rank, process, os.pidfd_open(process.pid), ours)


@contextlib.contextmanager
def _log(folder: Path | None, rank: int) -> Iterator[int | None]:
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"replica-{rank}.log").open("ab") as file:
        yield file.fileno()


def _watch(children: list[_Child], phases: Board, logs: Path | None, on_event: OnEvent) -> None:
    """Pass events on until all replicas have ended well, or raise the first cause."""
    alive = set(range(len(children)))
    suspects: list[_Child] = []
    deadline: float | None = None
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.line, selectors.EVENT_READ, child)
            selector.register(child.pidfd, selectors.EVENT_READ, child)
        while alive:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            for key, _ in selector.select(wait):
                child = key.data
                _read(child, selector, on_event)
                if key.fileobj == child.pidfd:
                    selector.unregister(child.pidfd)
                    alive.discard(child.rank)
                    if child.process.wait():
                        suspects.append(child)
            causes = [c for c in suspects if not _lost_a_peer(c)]
            if causes or (deadline is not None and time.monotonic() >= deadline) or (suspects and not alive):
                raise _cause((causes or suspects)[0], phases, logs)
            if suspects and deadline is None:
                deadline = time.monotonic() + PATIENCE


def _read(child: _Child, selector: selectors.BaseSelector, on_event: OnEvent) -> None:
    """All that the replica has sent so far; also what is left after its end."""
    while True:
        try:
            received = child.line.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            received = b""
        if not received:
            if child.line.fileno() in selector.get_map():
                selector.unregister(child.line)
            return
        *lines, child.pending = (child.pending + received).split(b"\n")
        for event in map(json.loads, lines):
            if event["event"] == "failed":
                child.failure = event
            else:
                on_event(event | {"rank": child.rank})


def _lost_a_peer(child: _Child) -> bool:
    return child.failure is not None and child.failure["kind"] == "PeerLost"


def _cause(child: _Child, phases: Board, logs: Path | None) -> SamestepError:
    step, phase = phases.read(child.rank)
    where = (
        f"replica {child.rank}, step {step}, {phase.name.lower()}" if step else f"replica {child.rank}, at the start"
    )
    if child.failure is None:
        code = child.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        look = f"look at {logs}/replica-{child.rank}.log" if logs else "look at what it printed"
        return ClusterError(
            f"a replica {how} ({where}, pid {child.process.pid}); all others were stopped; {look}, then start again"
        )
    kind = getattr(errors, child.failure["kind"], SamestepError)
    error: SamestepError = kind(f"{child.failure['message']} ({where})")
    error.remote_traceback = child.failure["traceback"]
    return error


def _end(children: list[_Child]) -> None:
    """No replica outlives the engine's call, whatever ends it."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
    for child in children:
        child.process.wait()
        os.close(child.pidfd)
        child.line.close()
