"""One replica, as the engine sees it, and its process where that is on this host."""

import contextlib
import os
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samestep import errors
from samestep.errors import ClusterError, SamestepError
from samestep.events import Event
from samestep.launch.engine import Program
from samestep.launch.line import heard
from samestep.launch.lookout import Seat
from samestep.replica import stack
from samestep.replica.place import CONTROL, Place, post

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

# cuBLAS repeats its bits with a workspace of a fixed size only, and reads this when it begins (NVIDIA, "cuBLAS",
# "Results Reproducibility"). torch's watchdog over NCCL would end a replica whose communicator was aborted to let it go
# on.
CUDA = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
NCCL = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
}

ENGINES = 2  # the engine's own standard error


@dataclass
class Child(ABC):
    """What is known of a replica wherever it is: Near here, Far where a nurse starts it (launch/far.py)."""

    place: Place
    failure: Event | None = field(default=None, kw_only=True)  # what it said of its own end
    silence: str | None = field(default=None, kw_only=True)  # why it was ended, where it said nothing
    lost: bool = field(default=False, kw_only=True)  # with the node that it was on
    generation: int = field(default=0, kw_only=True)  # that it was told of last
    port: int = field(default=0, kw_only=True)  # where replicas of other hosts call it, at its place's address

    @property
    def replica(self) -> int:
        return self.place.replica

    @property
    @abstractmethod
    def pid(self) -> int:
        """Of its process."""

    @property
    @abstractmethod
    def code(self) -> int | None:
        """As subprocess has it; None while it lives."""

    @abstractmethod
    def seat(self) -> Seat:
        """Where the lookout finds it."""

    @abstractmethod
    def where(self, *, resume: bool) -> str:
        """Where its code is, as replica/stack.py tells."""

    @abstractmethod
    def form(self, fields: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Tell it of a generation. Nothing where it has just died: the engine hears of that in another way."""

    @abstractmethod
    def kill(self) -> None:
        """At once, and with all that it has started."""

    @abstractmethod
    def close(self) -> None:
        """No replica outlives it."""

    def end(self) -> str:
        """How it ended, where it said nothing itself."""
        code = self.code
        if code is None:
            return "is lost with its node" if self.lost else "lost its peers"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def error(self, where: str) -> SamestepError:
        """What it said of its own end, as the error that it was. where: replica, step and phase."""
        assert self.failure is not None
        return as_error(self.failure, where)


@dataclass
class Near(Child):
    process: subprocess.Popen[bytes]
    pidfd: int
    line: socket.socket
    pending: bytes = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        return self.process.poll()

    @property
    def closed(self) -> bool:
        return self.line.fileno() < 0

    def seat(self) -> Seat:
        return Seat(self.place.slot, self.process.pid)

    def where(self, *, resume: bool) -> str:
        return stack.ask(self.process.pid, self.place.stack, resume=resume)

    def told(self) -> list[Event] | None:
        """All that it has sent so far; also what is left after its end. None where it can send nothing more."""
        events, self.pending = heard(self.line, self.pending)
        return events

    def form(self, fields: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        self.generation = fields["generation"]
        with contextlib.suppress(OSError):
            post(self.line, fields, descriptors)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.process.wait()
        os.close(self.pidfd)
        os.close(self.place.stack)
        self.line.close()


def as_error(failure: Event, where: str) -> SamestepError:
    """What a replica has told of its end, as the error that it was. where: replica, step and phase."""
    made, message = kind(failure), failure["message"]
    error = made(message if made.of_all else f"{message} ({where})")
    error.remote_traceback = failure["traceback"]
    return error


def kind(failure: Event) -> type[SamestepError]:
    """The class of the error that a replica has told of."""
    found: type[SamestepError] = getattr(errors, failure["kind"], SamestepError)
    return found


def spawn(program: Program, place: Place, start: Sequence[str] = ()) -> Near:
    """Start a replica. start: stands before its command. ClusterError where the program cannot be started."""
    ours, theirs = socket.socketpair()
    with theirs, _log(program.logs, place.replica) as log:
        try:
            process = subprocess.Popen(
                [*start, *program.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(program, theirs.fileno()),
                pass_fds=[theirs.fileno(), place.board, place.meeting, place.stack],
                start_new_session=True,  # Ctrl-C is the engine's to handle
            )
        except OSError as error:
            ours.close()
            os.close(place.stack)
            raise ClusterError(
                f"replica {place.replica} could not be started ({error}); nothing is left running"
            ) from error
    with contextlib.suppress(OSError):  # it has ended already, as its pidfd tells: a host's start may be wrong
        post(ours, asdict(place))
    return Near(place, process, os.pidfd_open(process.pid), ours)


def _environment(program: Program, control: int) -> dict[str, str]:
    given = {
        CONTROL: str(control),
        "OMP_NUM_THREADS": str(program.threads),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONUNBUFFERED": "1",
    }
    return MALLOC | CUDA | os.environ | NCCL | given


@contextlib.contextmanager
def _log(folder: Path | None, replica: int) -> Iterator[int | None]:
    if folder is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context((folder / f"replica-{replica}.log").open("ab")).fileno()
        except OSError:
            log = ENGINES  # a full disk keeps nobody from starting
        yield log
