"""How a nurse and the engine prove to each other that they know the run's token, which never travels.

    engine: challenge      nurse: its own challenge, proof of both      engine: proof of both

Proofs are HMAC-SHA256 and compared whole, in constant time, before anything else that a caller says is read.
"""

import hmac
import os
import socket
import time

CHALLENGE = 32  # bytes
CALL = CHALLENGE + 32  # what a nurse answers with
PATIENCE = 5.0  # seconds that either has for its part


def challenge() -> bytes:
    return os.urandom(CHALLENGE)


def call(token: bytes, asked: bytes, own: bytes) -> bytes:
    """A nurse's answer to a challenge."""
    return own + hmac.digest(token, b"nurse" + asked + own, "sha256")


def answer(token: bytes, asked: bytes, said: bytes) -> bytes | None:
    """The engine's to a call; None where a stranger made it."""
    own = said[:CHALLENGE]
    if not hmac.compare_digest(said, call(token, asked, own)):
        return None
    return hmac.digest(token, b"engine" + asked + own, "sha256")


def greet(line: socket.socket, token: bytes) -> None:
    """A nurse's part, on a new connection. ConnectionError where nobody who knows the token is there."""
    line.settimeout(PATIENCE)
    asked, own = _exactly(line, CHALLENGE), challenge()
    said = call(token, asked, own)
    line.sendall(said)
    if not hmac.compare_digest(_exactly(line, 32), answer(token, asked, said) or b""):
        raise ConnectionAbortedError("a stranger answers")
    line.settimeout(None)


def _exactly(line: socket.socket, size: int) -> bytes:
    until, said = time.monotonic() + PATIENCE, b""
    while len(said) < size:
        more = line.recv(size - len(said))
        if not more or time.monotonic() > until:
            raise ConnectionResetError("hung up")
        said += more
    return said
