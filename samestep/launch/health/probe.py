"""One host, asked from the others: what it has, how far it is, what its link moves, and what its clock says.

    START python -m samestep.launch.health.probe ADDRESS PATH...

reads a line with the token, prints one line of JSON about itself, then one for each line `ADDRESS PORT RATE` that it
reads: what it measures to the probe there. It listens at its own address only, to callers that know the token, and ends
with its standard input.
"""

import contextlib
import hmac
import json
import os
import platform
import select
import socket
import struct
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PATIENCE = 3.0  # seconds for each call, and each answer
TIMES = 20  # short messages
SKIPPED, MEASURED = 0.1, 0.3  # seconds at the start, in which buckets and buffers are filled, and after it
CHUNK = bytes(1 << 16)
CLOCK = struct.Struct("<d")
RATE = struct.Struct("<Qd")  # bytes, seconds

Facts = dict[str, Any]


def main() -> None:
    address, *paths = sys.argv[1:]
    token = sys.stdin.readline().strip()
    try:
        listener = _listen(address)
    except OSError as error:
        print(json.dumps({"refused": os.strerror(error.errno or 0), "errno": error.errno}), flush=True)
        return
    print(json.dumps(_about(listener.getsockname()[1], paths)), flush=True)
    threading.Thread(target=_serve, args=(listener, token.encode()), daemon=True).start()
    for line in sys.stdin:
        called, port, rate = line.split()
        print(json.dumps(measure(called, int(port), token.encode(), rate == "rate")), flush=True)


def _listen(address: str) -> socket.socket:
    listener = socket.create_server((address, 0), family=_family(address))
    listener.settimeout(None)
    return listener


def _about(port: int, paths: list[str]) -> Facts:
    return {
        "port": port,
        "torch": _version("torch"),
        "samestep": _version("samestep"),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "sees": [os.path.exists(path) for path in paths],  # noqa: PTH110
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# The one that is called


def _serve(listener: socket.socket, token: bytes) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(PATIENCE)
            if hmac.compare_digest(_exactly(connection, len(token)), token):
                _answer(connection)


def _answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while (asked := _exactly(connection, 1)) == b"t":
        connection.sendall(CLOCK.pack(time.time()))
    if asked == b"d":
        connection.sendall(RATE.pack(*_taken(connection)))


def _taken(connection: socket.socket) -> tuple[int, float]:
    """Bytes and seconds, beginning once what waited on the way has come."""
    buffer, began, count, end = bytearray(1 << 20), time.monotonic(), 0, 0.0
    until_counted = began + SKIPPED
    while (now := time.monotonic()) < until_counted + MEASURED:
        got = connection.recv_into(buffer)
        if not got:
            raise ConnectionResetError("hung up")
        end = time.monotonic()
        count += got if now >= until_counted else 0
    return count, max(end - until_counted, 1e-9)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionResetError("hung up")
        data += more
    return data


# The one that calls


def measure(address: str, port: int, token: bytes, rate: bool) -> Facts:
    """latency: seconds there and back, the shortest. clock: seconds that the other's is ahead of this one's, known to
    half the latency. rate: bytes a second, None where short messages pass and long ones do not. refused: why nobody
    answers.
    """
    try:
        connection = socket.create_connection((address, port), PATIENCE)
    except OSError as error:
        return {"refused": str(error.strerror or error)}
    with connection:
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.sendall(token)
            latency, ahead = min(_tick(connection) for _ in range(TIMES))
        except OSError as error:
            return {"refused": str(error.strerror or error)}
        return {"latency": latency, "clock": ahead} | ({"rate": _rate(connection)} if rate else {})


def _tick(connection: socket.socket) -> tuple[float, float]:
    """Seconds there and back, and how far the other's clock is ahead (as in NTP, RFC 5905 section 8)."""
    began, before = time.monotonic(), time.time()
    connection.sendall(b"t")
    (said,) = CLOCK.unpack(_exactly(connection, CLOCK.size))
    taken = time.monotonic() - began
    return taken, said - (before + taken / 2)


def _rate(connection: socket.socket) -> float | None:
    """Send for as long as the other counts. It hangs up where nothing comes."""
    until = time.monotonic() + PATIENCE + SKIPPED + MEASURED
    connection.sendall(b"d")
    with contextlib.suppress(ConnectionError, TimeoutError):
        while time.monotonic() < until:
            readable, writable, _ = select.select([connection], [connection], [], 0.1)
            if readable:
                count, seconds = RATE.unpack(_exactly(connection, RATE.size))
                return float(count / seconds)
            with contextlib.suppress(BlockingIOError):
                connection.send(CHUNK, socket.MSG_DONTWAIT) if writable else None
    return None


if __name__ == "__main__":
    main()
