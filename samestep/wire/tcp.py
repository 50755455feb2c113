"""What is asked of Linux for a TCP connection between replicas, and what it knows of the link under it."""

import contextlib
import ipaddress
import socket
import struct

INFO = struct.Struct("8B13I")  # the head of struct tcp_info, linux/tcp.h; times in milliseconds
RETRANSMITS, PROBES, LAST_DATA, LAST_ACK = 2, 3, 19, 20  # in it

# What a path holds is TCP's to find out; behind it at most this many bytes wait in the kernel: 20 ms of 100 Mbit/s, so
# that little stands before a short message, and 0.2 ms of 10 Gbit/s, in which the mover comes with more. Between two
# namespaces it moved as much as fixed buffers of 4 MB (no shaping, 1 Gbit/s, 100 Mbit/s), and short messages that came
# after 28 MB took 3 to 11 ms at 1 Gbit/s instead of 66.
UNSENT = 256 << 10
GIVE_UP = 60_000  # ms without an answer until Linux ends a connection by itself; the engine decides long before
BEAT = 1  # seconds of silence after which Linux asks whether the peer's kernel is there
LONGEST_RETRY = 1000  # ms; Linux doubles the time between two tries up to 120 s, long after a link is mended
TCP_RTO_MAX_MS = 44  # linux/tcp.h, from Linux 6.15 on


def new_socket(address: str) -> socket.socket:
    """For IPv4 or IPv6, as the address is; blocks nobody."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    return made


def tune(connection: socket.socket) -> None:
    """For messages of all sizes, and so that `silence` tells of a cut within seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_NOTSENT_LOWAT, UNSENT),
        (socket.TCP_USER_TIMEOUT, GIVE_UP),
        (socket.TCP_KEEPIDLE, BEAT),
        (socket.TCP_KEEPINTVL, BEAT),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    with contextlib.suppress(OSError):  # an older Linux; then a link that was cut for 6 s may rest for 6 s more
        connection.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, LONGEST_RETRY)


def silence(connection: socket.socket) -> float:
    """Seconds that the peer's kernel owes an answer; 0 where none is due. A process that is stopped owes none.

    Data count as answers: who only receives gets no acknowledgements. OSError for a connection that was closed.
    """
    return owed(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO.size))


def owed(info: bytes) -> float:
    """The same from the head of a tcp_info."""
    fields = INFO.unpack(info)
    asked = fields[RETRANSMITS] or fields[PROBES]
    return min(fields[LAST_DATA], fields[LAST_ACK]) / 1000 if asked else 0.0
