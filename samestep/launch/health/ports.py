"""Ports that somebody means to listen at, such as those of metrics and boards: whether another has them."""

import errno
import socket
from collections.abc import Sequence

from samestep.launch.health.finding import Finding, failure, looked

LOWEST = 1024  # below it only root may listen


def read(port: int) -> int:
    """0, or the errno of listening there, on all addresses: a listener at one of them is in the way too."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended is not in the way
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            return error.errno or -1
    return 0


def judge(asked: Sequence[int], refused: Sequence[int]) -> list[Finding]:
    """refused: of each, as `read` found."""
    bad = [_told(port, why) for port, why in zip(asked, refused, strict=True) if why]
    return looked("ports", f"{', '.join(map(str, asked))} are free", bad) if asked else []


def _told(port: int, why: int) -> Finding:
    if why == errno.EADDRINUSE:
        fix = f"choose another, or end what listens there (ss -tlnp sport = :{port})"
        return failure("ports", f"port {port} is taken", fix)
    return failure(
        "ports", f"nobody may listen at port {port} ({errno.errorcode.get(why, why)})", f"choose one from {LOWEST} on"
    )
