"""Transport over connected stream sockets, one a peer: on one host Unix socket pairs that the engine made, between
hosts TCP connections from wire/meeting.py.

Here is no listener, no port, no file: nothing can connect from outside. A thread moves the bytes, so an exchange
goes on during backward. Each message has a header that the receiver compares with what it expects.
"""

import select
import socket
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from samestep.errors import ClusterError, PeerLost
from samestep.wire import frames
from samestep.wire.collective import Given, Messages, Tag
from samestep.wire.frames import CHUNK, HEADER, Outbox, Outgoing, until_blocked


class _Incoming(NamedTuple):
    header: bytes
    payload: memoryview
    work: "SocketWork"


class Waiter(Protocol):
    """Whoever waits for work of this transport elsewhere than in its `wait`. Called by another thread."""

    def wake(self) -> None:
        """Some is done."""

    def end(self, error: Exception) -> None:
        """All has failed, and all to come will."""


class SocketWork:
    """Counts down the messages of one exchange."""

    def __init__(self, messages: int, waiter: Waiter | None) -> None:
        self._left, self._waiter = messages, waiter
        self._done = threading.Event()
        self._error: Exception | None = None
        if not messages:
            self._done.set()

    def wait(self) -> None:
        self._done.wait()
        if self._error:
            raise self._error

    def done(self) -> bool:
        return self._done.is_set()

    def message_done(self) -> None:
        self._left -= 1
        if not self._left:
            self._done.set()
            if self._waiter:
                self._waiter.wake()

    def fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._done.set()


class _Peer:
    """The queues of one connection. Only the moving thread reads from or writes to the socket."""

    def __init__(self, replica: int, connection: socket.socket) -> None:
        self.replica, self.connection = replica, connection
        self.outbox = Outbox(connection)
        self.incoming: deque[_Incoming] = deque()
        self._received = 0  # bytes of the first message, header included
        self._header = bytearray(HEADER.size)
        frames.prepare(connection)

    def interest(self) -> int:
        return (select.POLLIN if self.incoming else 0) | (select.POLLOUT if self.outbox.queue else 0)

    def receive(self) -> None:
        until_blocked(self._receive_some, self.incoming)

    def _receive_some(self) -> None:
        message = self.incoming[0]
        in_header = self._received < HEADER.size
        at = self._received if in_header else self._received - HEADER.size
        target = memoryview(self._header)[at:] if in_header else message.payload[at : at + CHUNK]
        count = self.connection.recv_into(target)
        if not count:
            raise ConnectionResetError("connection closed")
        self._received += count
        if self._received == HEADER.size:
            frames.compare(self.replica, bytes(self._header), message.header)
        if self._received == HEADER.size + len(message.payload):
            self._received = 0
            self.incoming.popleft()
            message.work.message_done()


class Sockets:
    """The replicas of one generation, connected pairwise. Sockets are taken over and closed by `close`.

    members: their numbers by rank, for errors; default: the ranks. hosts: by rank; default: all are on one.
    closed: set once it is.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        connections: Mapping[int, socket.socket],
        generation: int = 0,
        members: Sequence[int] | None = None,
        hosts: Sequence[int] | None = None,
        waiter: Waiter | None = None,
    ) -> None:
        self.rank, self.size, self.bytes_sent, self.shortage = rank, size, 0, ""
        self.hosts = hosts or [0] * size
        self._generation, self._waiter = generation, waiter
        self._peers = {r: _Peer(members[r] if members else r, c) for r, c in connections.items()}
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        self._cancelled = ""
        self.closed = threading.Event()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._thread = threading.Thread(target=self._move, name="samestep-wire", daemon=True)
        self._thread.start()

    def memory(self, count: int, like: Tensor) -> Tensor:
        return like.new_zeros(count)

    def borrow(self, tag: Tag, sends: Messages, receives: Messages) -> Given:
        return Given(self.exchange(tag, sends, receives), receives)

    def exchange(self, tag: Tag, sends: Messages, receives: Messages) -> SocketWork:
        work = SocketWork(sum(map(len, sends.values())) + sum(map(len, receives.values())), self._waiter)
        with self._lock:
            if self._failure:
                work.fail(self._failure)
                return work
            for peer, tensors in receives.items():
                self._peers[peer].incoming.extend(_Incoming(*self._message(tag, t), work) for t in tensors)
            for peer, tensors in sends.items():
                self._peers[peer].outbox.queue.extend(Outgoing(*self._message(tag, t), work) for t in tensors)
                self.bytes_sent += sum(t.nbytes for t in tensors)
        self._wake()
        return work

    def cancel(self, reason: str) -> None:
        self._cancelled = reason
        self._wake()

    def close(self) -> None:
        if self.closed.is_set():
            return
        self.closed.set()
        self._wake()
        self._thread.join()
        for peer in self._peers.values():
            peer.connection.close()
        self._wake_read.close()
        self._wake_write.close()

    def _message(self, tag: Tag, tensor: Tensor) -> tuple[bytes, memoryview]:
        return frames.header(self._generation, tag, tensor), frames.payload(tensor)

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"x")
        except BlockingIOError:
            return  # full: the thread is going to wake anyway
        except OSError:
            if not self.closed.is_set():  # cancelled by one thread while another one closes it
                raise

    def _move(self) -> None:
        while not self.closed.is_set():
            if self._cancelled:
                self._fail(PeerLost(self._cancelled))
            poll = select.poll()
            poll.register(self._wake_read, select.POLLIN)
            waiting = {p.connection.fileno(): p for p in self._peers.values() if p.interest()}
            for descriptor, peer in waiting.items():
                poll.register(descriptor, peer.interest())
            for descriptor, events in poll.poll():
                if descriptor == self._wake_read.fileno():
                    self._wake_read.recv(4096)
                else:
                    self._serve(waiting[descriptor], events)

    def _serve(self, peer: _Peer, events: int) -> None:
        gone = events & (select.POLLHUP | select.POLLERR)
        try:
            if events & select.POLLIN or gone:
                peer.receive()
            if events & select.POLLOUT or gone:
                peer.outbox.send()
        except ClusterError as error:
            self._fail(error)
        except OSError as error:
            self._fail(PeerLost(f"replica {peer.replica} went away ({error})"))

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._failure = self._failure or error
            for peer in self._peers.values():
                for work in [each.work for each in peer.incoming] + [each.work for each in peer.outbox.queue]:
                    if isinstance(work, SocketWork):
                        work.fail(error)
                peer.incoming.clear()
                peer.outbox.queue.clear()
        if self._waiter:
            self._waiter.end(error)
