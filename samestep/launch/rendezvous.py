"""How the processes of one launch find process 0: through a file in the run folder, which all of them share.

The file says where process 0 is called, and holds a secret that only who may read the run folder knows. A process that
calls proves that it knows it, as between replicas (wire/meeting.py). A file that an earlier life has left leads to
nobody, and is read again. What a launcher says of addresses and ports is only a hint: torchrun listens at MASTER_PORT
itself.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samestep.errors import ClusterError
from samestep.launch.started import Started
from samestep.wire import meeting, tcp
from samestep.wire.meeting import Door, meet

FOLDER = "launch"  # in the run folder
PAUSE = 0.2  # seconds between two tries
CALL = 5.0  # seconds that a call may take
SILENT = 20.0  # seconds without an answer of its kernel after which a host is given up
FAREWELL = 3.0  # seconds in which those that still call are told why there is no run

Lines = dict[int, socket.socket]  # by index of the process


@dataclass(frozen=True)
class Called:
    """A connection to process 0, which has to prove itself yet. address: this host's own. proof: what is due."""

    line: socket.socket
    address: str
    proof: bytes


class Reception:
    """Process 0's side: its door, and the file that leads there, until it is closed."""

    def __init__(self, me: Started, run: Path) -> None:
        """ClusterError where process 0 has no address, or the folder cannot be written."""
        self._me, self._token = me, secrets.token_bytes(32)
        self._came: list[socket.socket] = []  # copies of the connections to those that wait for the others
        self.door = _door(me)
        self.address: str = self.door.listener.getsockname()[0]
        self._file = _file(run, me)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._publish()
        except OSError as error:
            self.door.close()
            raise ClusterError(f"{self._file} cannot be written: {error.strerror}; make --run writable") from None

    def receive(self, patience: float, asked_to_stop: Callable[[], bool]) -> Lines:
        """All others, connected. ClusterError where some do not come within `patience` seconds: it names them."""
        lines = self._meet(_Awaiting(self._me, patience, asked_to_stop, self._came))
        self._forget()
        return lines

    def turn_away(self, message: bytes, patience: float = FAREWELL) -> None:
        """Say it to all who have come, and to those who call within `patience` seconds."""
        for line in self._came:
            with contextlib.suppress(OSError):
                line.sendall(message)
        self._forget()
        with contextlib.suppress(ClusterError):
            for line in self._meet(_Refusing(message, patience)).values():
                line.close()

    def close(self) -> None:
        self._forget()
        self.door.close()
        self._file.unlink(missing_ok=True)

    def _forget(self) -> None:
        while self._came:
            self._came.pop().close()

    def _meet(self, watcher: meeting.Watcher) -> Lines:
        others = dict.fromkeys(range(1, self._me.size), ("", 0))
        lines = meet(self.door, self._me.size, others, 0, self._token, watcher)  # as the highest, which calls nobody
        for line in lines.values():
            line.setblocking(True)
        return lines

    def _publish(self) -> None:
        said = {"address": self.address, "port": self.door.port, "secret": self._token.hex()}
        fresh = self._file.with_suffix(f".{secrets.token_hex(4)}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(said, file)
        fresh.rename(self._file)


class _Awaiting:
    """Who is missing, and until when: what `meet` asks. came: filled with a copy of each connection."""

    def __init__(
        self, me: Started, patience: float, asked_to_stop: Callable[[], bool], came: list[socket.socket]
    ) -> None:
        self._came = came
        self._me, self._patience, self._asked_to_stop = me, patience, asked_to_stop
        self._until = time.monotonic() + patience
        self._missing = set(range(1, me.size))

    def calls(self, rank: int, answered: bool) -> None:
        """Nobody is called."""

    def reached(self, rank: int, connection: socket.socket) -> None:
        self._missing.discard(rank)
        self._came.append(connection.dup())

    def look(self) -> None:
        if self._asked_to_stop():
            raise ClusterError("the run was asked to stop before all processes had come")
        if self._missing and time.monotonic() >= self._until:
            raise ClusterError(
                f"{self._me.by} has started {self._me.size} processes, but {_names(self._missing)} did not come within "
                f"{self._patience:g} s; look at what they printed, and whether their hosts share the run folder"
            )


class _Refusing:
    def __init__(self, message: bytes, seconds: float) -> None:
        self._message, self._until = message, time.monotonic() + seconds

    def calls(self, rank: int, answered: bool) -> None:
        """Nobody is called."""

    def reached(self, rank: int, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(self._message)

    def look(self) -> None:
        if time.monotonic() >= self._until:
            raise ClusterError("nobody else has called")


def call(me: Started, run: Path, patience: float) -> Called:
    """Say hello to process 0. ClusterError where it is not there within `patience` seconds."""
    until, why = time.monotonic() + patience, ""
    while True:
        try:
            return _call(me, run)
        except FileNotFoundError:
            why = f"{_file(run, me)} is not there; look at what process 0 printed, and whether its host shares {run}"
        except (OSError, ValueError, KeyError) as error:
            why = f"{_where(run, me)} does not answer ({error}); let its host be reached at that address"
        if time.monotonic() >= until:
            raise ClusterError(f"process {me.index} of {me.size} has waited {patience:g} s for process 0, but {why}")
        time.sleep(PAUSE)


def answered(called: Called) -> bool:
    """Whether process 0 proves itself; it may have data to prepare first. False where it is gone, or a stranger."""
    called.line.settimeout(PAUSE)
    said = b""
    while len(said) < len(called.proof):
        more = _more(called.line, len(called.proof) - len(said))
        if more == b"":
            called.line.close()
            return False
        said += more or b""
    called.line.settimeout(None)
    return hmac.compare_digest(said, called.proof)


def _more(line: socket.socket, due: int) -> bytes | None:
    """None where nothing has come yet, no bytes where nothing will."""
    try:
        return line.recv(due)
    except TimeoutError:
        return b"" if tcp.silence(line) > SILENT else None
    except OSError:
        return b""


def _call(me: Started, run: Path) -> Called:
    at = json.loads(_file(run, me).read_text())
    token, line = bytes.fromhex(at["secret"]), tcp.new_socket(at["address"])
    try:
        line.settimeout(CALL)
        line.connect((at["address"], at["port"]))
        tcp.tune(line)
        said = meeting.hello(token, 0, me.index, me.size)
        line.sendall(said)
        return Called(line, line.getsockname()[0], meeting.answer(token, said))
    except OSError:
        line.close()
        raise


def _door(me: Started) -> Door:
    """At the address of the hint where it is this host's, else at the one from which this host reaches it."""
    try:
        found: list[Any] = [info[4][0] for info in socket.getaddrinfo(me.hint, None, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise ClusterError(
            f"MASTER_ADDR is {me.hint}, which has no address ({error.strerror}); set it to process 0's host"
        ) from None
    for address in found:
        for own in [address] if me.sure else [address, *_towards(address)]:
            with contextlib.suppress(OSError):
                return Door(own)
    raise ClusterError(
        f"MASTER_ADDR is {me.hint} ({found[0]}), but process 0 runs on {socket.gethostname()}, where nobody can listen "
        "at that address; set it to an address of that host"
    )


def _towards(address: str) -> list[str]:
    """The address of this host on the way there. No packet is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return [probe.getsockname()[0]]
    return []


def _file(run: Path, me: Started) -> Path:
    return run / FOLDER / f"{hashlib.sha256(me.job.encode()).hexdigest()[:16]}.json"


def _where(run: Path, me: Started) -> str:
    try:
        at = json.loads(_file(run, me).read_text())
        return f"{at['address']}:{at['port']}"
    except (OSError, ValueError, KeyError):
        return str(_file(run, me))


def _names(missing: set[int]) -> str:
    """Such as: processes 1, 2, 5."""
    first = ", ".join(map(str, sorted(missing)[:8])) + (", ..." if len(missing) > 8 else "")
    return f"process{'es' if len(missing) > 1 else ''} {first}"
