import contextlib
import socket
import time

import pytest

from samestep.wire import tcp


def info(retransmits=0, probes=0, data=0, acknowledged=0):
    fields = [0] * 21
    fields[tcp.RETRANSMITS], fields[tcp.PROBES], fields[tcp.LAST_DATA], fields[tcp.LAST_ACK] = (
        retransmits,
        probes,
        data,
        acknowledged,
    )
    return tcp.INFO.pack(*fields)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (info(data=9000, acknowledged=9000), 0.0),
        (info(probes=2, data=9000, acknowledged=4000), 4.0),
        (info(retransmits=3, data=5000, acknowledged=7000), 5.0),
        (info(probes=1, data=3, acknowledged=60_000), 0.003),
    ],
    ids=["nothing was asked", "a question", "data unanswered", "it sends, and is asked nothing"],
)
def test_a_peer_owes_an_answer_only_to_what_it_was_asked(told, seconds):
    assert tcp.owed(told) == seconds


@contextlib.contextmanager
def connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with tcp.new_socket("127.0.0.1") as ours:
            ours.setblocking(True)
            ours.connect(listener.getsockname())
            theirs, _ = listener.accept()
            with theirs:
                tcp.tune(ours)
                tcp.tune(theirs)
                yield ours, theirs


def test_one_that_reads_nothing_and_says_nothing_owes_nothing_while_its_kernel_answers():
    """As a process does that is stopped, or busy: full buffers, then nothing for longer than a link may be silent."""
    with connection() as (ours, _):
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(1 << 20))
        began = time.monotonic()
        longest = 0.0
        while time.monotonic() < began + 5:
            longest = max(longest, tcp.silence(ours))
            time.sleep(0.1)
        assert longest < 1.5


def test_little_waits_in_the_kernel_behind_what_is_on_its_way():
    with connection() as (ours, _):
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == tcp.UNSENT
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_linux_does_not_end_a_connection_before_the_engine_has_decided():
    with connection() as (ours, _):
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) >= 30_000


def test_a_closed_connection_is_an_error_and_not_silent():
    with connection() as (ours, _):
        ours.close()
        with pytest.raises(OSError):
            tcp.silence(ours)
