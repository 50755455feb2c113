"""JSON lines over a connected socket, as an engine hears them."""

import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any

from samestep.events import Event


def heard(line: socket.socket, pending: bytes) -> tuple[list[Event] | None, bytes]:
    """All that has arrived, and the begin of a line that has not wholly; also what is left after the other side's end.
    None where nothing more can come. pending: the begin that the last call has returned.
    """
    events: list[Event] = []
    while True:
        try:
            received = line.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return events, pending
        except OSError:  # reset, or timed out
            received = b""
        if not received:
            return events or None, pending
        *lines, pending = (pending + received).split(b"\n")
        events += map(json.loads, lines)


def encoded(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


class Line:
    """One that both sides write to."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._pending = b""

    def fileno(self) -> int:
        return self.connection.fileno()

    def heard(self) -> list[Event] | None:
        """None where the other side is gone."""
        events, self._pending = heard(self.connection, self._pending)
        return events

    def say(self, fields: Mapping[str, Any]) -> None:
        """Nothing where the other side is gone: that is heard."""
        with contextlib.suppress(OSError):
            self.connection.sendall(encoded(fields))

    def close(self) -> None:
        self.connection.close()
