"""Transport between replicas of one host that see each other's memory: what is sent is told, not moved.

A message goes over the connected sockets of the engine, as in `sockets.py`; beside its header it says where the payload
lies in shared memory, and whoever received it says when it needs that no more. Small payloads follow their header, and
so do large ones where no shared memory can be had. No thread: as nothing has to be moved, nothing is to be driven while
a replica computes. All methods but `cancel`, `end` and `wake` are for one thread.
"""

import os
import select
import socket
import time
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from samestep.errors import ClusterError, PeerLost
from samestep.wire import frames
from samestep.wire.collective import Messages, Tag
from samestep.wire.frames import HEADER
from samestep.wire.peer import RELEASED, Account, Arrival, Copy, Due, Lent, Peer
from samestep.wire.segments import Place, Segments

SPIN = 1e-4  # seconds to look again and again, with a core for each replica: to be woken takes half of that
INLINE = 4096  # bytes up to which a payload follows its header rather than being copied to shared memory


class SharedWork:
    def __init__(self, wire: "SharedMemory", account: Account) -> None:
        self._wire, self._account = wire, account

    def wait(self) -> None:
        self._wire.flush()  # where all had come before it was due, the sender does not know that it is copied
        while not self._over():
            self._wire.move()

    def done(self) -> bool:
        return self._over() or self._wire.look() or self._over()

    def _over(self) -> bool:
        return not self._account.due and not self._account.out


class SharedLoan:
    def __init__(self, wire: "SharedMemory", account: Account) -> None:
        self._wire, self._account = wire, account

    def wait(self) -> Messages:
        while self._account.due:
            self._wire.move()
        return self._account.found

    def done(self) -> bool:
        return not self._account.due or self._wire.look() or not self._account.due

    def release(self) -> None:
        self._wire.release(self._account)

    def returned(self) -> None:
        self._wire.flush()
        while self._account.out:
            self._wire.move()


class SharedMemory:
    """The replicas of one generation on one host. Sockets and file are taken over and closed by `close`.

    connections: by rank; where some of the `size` replicas are on other hosts, to those on this one (`joined.py`).
    file: descriptor of what the members share (`segments.py`). members: their numbers by rank, for errors; default: the
    ranks. shortage: why memory could not be shared, once it could not; all is then as before, but slower.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        connections: Mapping[int, socket.socket],
        file: int,
        generation: int = 0,
        members: Sequence[int] | None = None,
    ) -> None:
        self.rank, self.size, self.bytes_sent, self.shortage = rank, size, 0, ""
        self.hosts = [0] * size
        self._generation = generation
        self._segments = Segments(file, rank)
        self._peers = {r: Peer(r, members[r] if members else r, c) for r, c in connections.items()}
        self._failure: Exception | None = None
        self._cancelled: Exception | None = None
        self._closed = False
        self._cores = len(os.sched_getaffinity(0))
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._wake_read, select.POLLIN)
        self._by_descriptor = {peer.connection.fileno(): peer for peer in self._peers.values()}
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.POLLIN)

    def memory(self, count: int, like: Tensor) -> Tensor:
        if count and self._peers and like.device.type == "cpu" and not self.shortage:
            try:
                return self._segments.zeros(count, like.dtype)
            except OSError as error:
                self._short(error)
        return like.new_zeros(count)

    def exchange(self, tag: Tag, sends: Messages, receives: Messages) -> SharedWork:
        return SharedWork(self, self._begin(Account(copies=True), tag, sends, receives))

    def borrow(self, tag: Tag, sends: Messages, receives: Messages) -> SharedLoan:
        return SharedLoan(self, self._begin(Account(copies=False), tag, sends, receives))

    def cancel(self, reason: str) -> None:
        self.end(PeerLost(reason))

    def end(self, error: Exception) -> None:
        """Fail all work under way and to come with this error. Callable from any thread."""
        self._cancelled = self._cancelled or error
        self.wake()

    def wake(self) -> None:
        """Let `move` return, though nothing has come. Callable from any thread."""
        try:
            self._wake_write.send(b"x")
        except BlockingIOError:
            return  # full: whoever waits is going to wake anyway
        except OSError:
            if not self._closed:  # cancelled by one thread while another one closes it
                raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.flush()  # to those who go on, what is not released is lost with this replica
        self._fail(PeerLost("this replica has left the generation"))
        for peer in self._peers.values():
            peer.connection.close()
        self._wake_read.close()
        self._wake_write.close()
        self._segments.close()

    # What works and loans call

    def move(self) -> None:
        """Wait for anything to come, and take it in. Raises what ended the transport."""
        if failure := self._ended():
            raise failure
        until = time.perf_counter() + SPIN if self._cores >= self.size else 0.0
        while not self._take_in(0):
            if time.perf_counter() >= until:
                self._take_in(None)
                return

    def look(self) -> bool:
        """Take in what has come. Whether the transport has ended, so that a wait would raise at once."""
        if not self._ended():
            self._take_in(0)
        return self._ended() is not None

    def release(self, account: Account) -> None:
        """The peers are told with the next call, most often in one message with what is sent then."""
        for peer, number in account.borrowed:
            peer.release(number)
        account.borrowed.clear()

    def flush(self) -> None:
        for peer in self._peers.values():
            if peer.outbox.queue:
                self._send(peer)

    def _ended(self) -> Exception | None:
        """Peers that are gone end it once something is due from them: before that, all may have been said."""
        if self._failure is None and self._cancelled:
            self._failure = self._cancelled
        lost = [peer.gone for peer in self._peers.values() if peer.gone and peer.owes()]
        if self._failure is None and lost:
            self._failure = lost[0]
        return self._failure

    # Sending

    def _begin(self, account: Account, tag: Tag, sends: Messages, receives: Messages) -> Account:
        account.due, account.out = sum(map(len, receives.values())), sum(map(len, sends.values()))
        account.found = {rank: list(tensors) for rank, tensors in receives.items()}
        if not self._ended():
            self._show(account, tag, sends)
            for rank, tensors in receives.items():
                dues = [Due(self._header(tag, tensor), tensor, account, i) for i, tensor in enumerate(tensors)]
                self._expect(self._peers[rank], dues)
        return account

    def _show(self, account: Account, tag: Tag, sends: Messages) -> None:
        copies: dict[tuple[int, int], Copy | None] = {}
        for rank, tensors in sends.items():
            for tensor in tensors:
                self._queue(self._peers[rank], self._header(tag, tensor), tensor, account, copies)
                self.bytes_sent += tensor.nbytes
            self._send(self._peers[rank])

    def _queue(
        self,
        peer: Peer,
        header: bytes,
        tensor: Tensor,
        account: Account,
        copies: dict[tuple[int, int], Copy | None],
    ) -> None:
        """copies: made for other peers in this exchange, by address and bytes."""
        if tensor.nbytes <= INLINE:
            peer.send(header, tensor, account)
        elif place := self._segments.place(tensor):
            peer.show(header, place, Lent(account, None))
        else:
            key = tensor.data_ptr(), tensor.nbytes
            copy = copies[key] = copies[key] if key in copies else self._copy(tensor)
            if copy is None:
                peer.send(header, tensor, account)
            else:
                copy.readers += 1
                peer.show(header, Place(copy.segment.start, copy.segment.size, 0), Lent(account, copy))

    def _copy(self, tensor: Tensor) -> Copy | None:
        try:
            return None if self.shortage else Copy(self._segments.copy(tensor))
        except OSError as error:
            self._short(error)
            return None

    def _send(self, peer: Peer) -> None:
        """What a peer that is gone has said before may still have to be read, so that its end is seen there."""
        try:
            peer.outbox.send()
        except OSError as error:
            needed = [message for message in peer.outbox.queue if message.work]
            peer.outbox.queue.clear()
            if needed:
                self._fail(PeerLost(f"replica {peer.replica} went away ({error})"))

    def _header(self, tag: Tag, tensor: Tensor) -> bytes:
        return frames.header(self._generation, tag, tensor)

    def _short(self, error: OSError) -> None:
        self.shortage = f"no memory to share could be had ({error.strerror})"
        warnings.warn(f"{self.shortage}; messages go through sockets, which is slower", RuntimeWarning, stacklevel=2)

    # Receiving

    def _expect(self, peer: Peer, dues: Sequence[Due]) -> None:
        peer.due.extend(dues)
        while peer.due and peer.early and not self._failure:
            self._match(peer, peer.early.popleft())

    def _take_in(self, milliseconds: int | None) -> bool:
        """Whether anything has come."""
        self.flush()
        self._note_interests()
        happened = self._poll.poll(milliseconds)
        for descriptor, events in happened:
            if descriptor == self._wake_read.fileno():
                self._wake_read.recv(4096)
            else:
                self._serve(self._by_descriptor[descriptor], events)
        self.flush()
        return bool(happened)

    def _note_interests(self) -> None:
        for peer in self._peers.values():
            if bool(peer.outbox.queue) != peer.waits_to_send and not peer.gone:
                peer.waits_to_send = not peer.waits_to_send
                self._poll.modify(peer.connection, select.POLLIN | (select.POLLOUT if peer.waits_to_send else 0))

    def _serve(self, peer: Peer, events: int) -> None:
        if events & select.POLLOUT:
            self._send(peer)
        if events & ~select.POLLOUT:
            self._receive(peer)

    def _receive(self, peer: Peer) -> None:
        for arrival in peer.receive():
            self._arrived(peer, arrival)
        if peer.gone:
            self._poll.unregister(peer.connection)

    def _arrived(self, peer: Peer, arrival: Arrival) -> None:
        _, number, operation, *_ = HEADER.unpack(arrival.header)
        if operation == RELEASED:
            self._returned(peer.lent.pop(number))
        elif peer.due:
            self._match(peer, arrival)
        else:
            peer.early.append(arrival)

    def _returned(self, lent: Lent) -> None:
        lent.account.message_done()
        if lent.copy:
            lent.copy.readers -= 1
            if not lent.copy.readers:
                self._segments.reuse(lent.copy.segment)

    def _match(self, peer: Peer, arrival: Arrival) -> None:
        due = peer.due.popleft()
        try:
            frames.compare(peer.replica, arrival.header, due.header)
        except ClusterError as error:
            self._fail(error)
            return
        due.account.due -= 1
        if arrival.place:
            self._seen(peer, due, self._segments.see(arrival.place, due.target), arrival.number)
        elif arrival.inline:
            due.target.copy_(torch.frombuffer(arrival.inline, dtype=due.target.dtype).view(due.target.shape))

    def _seen(self, peer: Peer, due: Due, values: Tensor, number: int) -> None:
        """A message in shared memory has come that was due."""
        if due.account.copies:
            due.target.copy_(values)
            peer.release(number)
        else:
            due.account.found[peer.rank][due.place] = values
            due.account.borrowed.append((peer, number))

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
