"""Transport where some replicas are on this host and others are not: shared memory with the ones, TCP with the others.

Whoever waits does so in the near part, which has no thread and has to be moved by those that use it. The far part has
one: it wakes the near part when work of its own is done, and ends it when it has failed. So a wait for either part sees
the end of both, and what near peers wait for is moved on whatever this replica waits for.
"""

import socket
from collections.abc import Mapping, Sequence

from torch import Tensor

from samestep.wire.collective import Given, Messages, Tag
from samestep.wire.shared_memory import SharedLoan, SharedMemory, SharedWork
from samestep.wire.sockets import Sockets, SocketWork


class JoinedWork:
    def __init__(self, wire: "Joined", near: SharedWork, far: SocketWork) -> None:
        self._wire, self._near, self._far = wire, near, far

    def wait(self) -> None:
        self._near.wait()
        self._wire.wait_for(self._far)

    def done(self) -> bool:
        return self._near.done() and self._wire.over(self._far)


class JoinedLoan:
    def __init__(self, wire: "Joined", near: SharedLoan, far: Given) -> None:
        self._wire, self._near, self._far = wire, near, far

    def wait(self) -> Messages:
        found = self._near.wait()
        self._wire.wait_for(self._far)
        return {**found, **self._far.wait()}

    def done(self) -> bool:
        return self._near.done() and self._wire.over(self._far)

    def release(self) -> None:
        self._near.release()

    def returned(self) -> None:
        self._near.returned()
        self._wire.wait_for(self._far)


class Joined:
    """The replicas of one generation on several hosts. Sockets and file are taken over and closed by `close`.

    near, far: connections by rank, to those on this host and to all others. file: what those on this host share.
    members: their numbers by rank, for errors; default: the ranks. hosts: by rank. closed: set once it is.
    """

    def __init__(
        self,
        rank: int,
        near: Mapping[int, socket.socket],
        far: Mapping[int, socket.socket],
        file: int,
        hosts: Sequence[int],
        generation: int = 0,
        members: Sequence[int] | None = None,
    ) -> None:
        self.rank, self.size, self.hosts = rank, len(hosts), hosts
        self.near = SharedMemory(rank, self.size, near, file, generation, members)
        self.far = Sockets(rank, self.size, far, generation, members, hosts, waiter=self.near)
        self.closed = self.far.closed
        self._is_near = frozenset(near)

    @property
    def bytes_sent(self) -> int:
        return self.near.bytes_sent + self.far.bytes_sent

    @property
    def shortage(self) -> str:
        return self.near.shortage

    def memory(self, count: int, like: Tensor) -> Tensor:
        return self.near.memory(count, like)

    def exchange(self, tag: Tag, sends: Messages, receives: Messages) -> JoinedWork:
        far = self.far.exchange(tag, self._others(sends), self._others(receives))
        return JoinedWork(self, self.near.exchange(tag, self._here(sends), self._here(receives)), far)

    def borrow(self, tag: Tag, sends: Messages, receives: Messages) -> JoinedLoan:
        far = self.far.borrow(tag, self._others(sends), self._others(receives))
        return JoinedLoan(self, self.near.borrow(tag, self._here(sends), self._here(receives)), far)

    def cancel(self, reason: str) -> None:
        self.near.cancel(reason)
        self.far.cancel(reason)

    def close(self) -> None:
        self.far.close()  # first: its thread wakes the near part
        self.near.close()

    # What works and loans call

    def wait_for(self, far: SocketWork | Given) -> None:
        """Block until work of the far part is done. Raises what ended either part."""
        while not far.done():
            self.near.move()
        far.wait()

    def over(self, far: SocketWork | Given) -> bool:
        """Whether `wait_for` would return or raise at once."""
        return far.done() or self.near.look()

    def _here(self, messages: Messages) -> Messages:
        return {rank: tensors for rank, tensors in messages.items() if rank in self._is_near}

    def _others(self, messages: Messages) -> Messages:
        return {rank: tensors for rank, tensors in messages.items() if rank not in self._is_near}
