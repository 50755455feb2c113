"""Transport where tensors of a device go by the device's own way (NCCL), beside another transport for all else.

What the device's way can neither tell nor survive is the other's business: before tensors move, both sides say there
what they are about to move, which is compared; and whether the generation is over is asked again and again while a
replica waits. Then the stuck communicator is aborted, and the survivors go on in the next generation with a new one.
All methods but `cancel` are for one thread at a time, in an order that all replicas share.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from samestep.errors import ClusterError, PeerLost
from samestep.wire.collective import Collective, Given, Messages, Tag, Work
from samestep.wire.frames import DTYPES

PAUSE = 5e-5  # seconds between two looks
OVER = "a replica of this generation is gone"


class Group(Protocol):
    """The device's own way, between the replicas of one generation. `abort` is callable from any thread."""

    def connect(self) -> None:
        """Block until all replicas are connected."""

    def start(self, sends: Messages, receives: Messages) -> Work: ...

    def add(self, tensor: Tensor) -> Work:
        """Start adding a tensor over all replicas in place."""

    def abort(self) -> None:
        """Let go of all that is under way, whatever the peers do. The end of it in any case."""


class BesideWork:
    """said: what the peers have told of their part. due: what they have to tell, in its place."""

    def __init__(self, wire: "Beside", moved: Work, said: Work, due: Sequence[tuple[int, Tensor, Tensor]]) -> None:
        self._wire, self._moved, self._said, self._due = wire, moved, said, due

    def wait(self) -> None:
        try:
            self._wait()
        except Exception:
            self._wire.abort()
            raise

    def done(self) -> bool:
        return self._wire.ended() is not None or (self._moved.done() and self._said.done())

    def _wait(self) -> None:
        self._said.wait()
        for peer, told, due in self._due:
            _compare(peer, told, due)
        self._wire.until(self._moved)
        self._moved.wait()
        self._wire.check()  # what was aborted looks as if it were done
        self._due = ()


class Beside:
    """The replicas of `inner`, with tensors of `device` by `group`. Both are closed by `close`.

    over: whether a replica of the generation is known to be gone. PeerLost where it is, before all are connected.
    """

    def __init__(self, inner: Collective, group: Group, device: torch.device, over: Callable[[], bool]) -> None:
        self.rank, self.size = inner.rank, inner.size
        self._inner: Any = inner
        self._group, self._device, self._over = group, device, over
        self._cancelled = ""
        self._aborting = threading.Lock()
        self._aborted = False
        self._moved, self._told = 0, self._inner.bytes_sent  # bytes: by the group, and of what is said about it
        self._connect()

    @property
    def hosts(self) -> Sequence[int]:
        return self._inner.hosts  # type: ignore[no-any-return]

    @property
    def bytes_sent(self) -> int:
        sent: int = self._inner.bytes_sent - self._told + self._moved
        return sent

    @property
    def shortage(self) -> str:
        return self._inner.shortage  # type: ignore[no-any-return]

    def memory(self, count: int, like: Tensor) -> Tensor:
        zeros: Tensor = like.new_zeros(count) if self._moves(like) else self._inner.memory(count, like)
        return zeros

    def exchange(self, tag: Tag, sends: Messages, receives: Messages) -> Work:
        ours, ours_due = self._part(sends, True), self._part(receives, True)
        others, others_due = self._part(sends, False), self._part(receives, False)
        if not ours and not ours_due:
            return self._inner.exchange(tag, others, others_due)  # type: ignore[no-any-return]
        self.check()
        tell = {peer: _described(tensors) for peer, tensors in ours.items()}
        due = {peer: _described(tensors) for peer, tensors in ours_due.items()}
        told = {peer: torch.empty_like(tensor) for peer, tensor in due.items()}
        said = self._inner.exchange(tag, _before(tell, others), _before(told, others_due))
        self._told += sum(tensor.nbytes for tensor in tell.values())
        self._moved += sum(tensor.nbytes for tensors in ours.values() for tensor in tensors)
        moved = self._group.start(ours, ours_due)
        return BesideWork(self, moved, said, [(peer, told[peer], due[peer]) for peer in due])

    def borrow(self, tag: Tag, sends: Messages, receives: Messages) -> Any:
        if any(self._part(each, True) for each in (sends, receives)):
            return Given(self.exchange(tag, sends, receives), receives)
        return self._inner.borrow(tag, sends, receives)

    def all_reduce(self, tag: Tag, tensor: Tensor) -> Work:
        self.check()
        self._moved += 2 * tensor.nbytes * (self.size - 1) // self.size  # a ring's share
        return BesideWork(self, self._group.add(tensor), self._inner.exchange(tag, {}, {}), ())

    def cancel(self, reason: str) -> None:
        self._cancelled = self._cancelled or reason
        self._inner.cancel(reason)
        self.abort()

    def close(self) -> None:
        self.abort()
        self._inner.close()

    # What works call

    def until(self, work: Work) -> None:
        """Block until done. PeerLost where that will never be."""
        while not work.done():
            self.check()
            time.sleep(PAUSE)

    def check(self) -> None:
        if reason := self.ended():
            raise PeerLost(reason)

    def ended(self) -> str | None:
        return self._cancelled or (OVER if self._over() else None)

    def abort(self) -> None:
        with self._aborting:
            if not self._aborted:
                self._aborted = True
                self._group.abort()

    def _connect(self) -> None:
        """On another thread: NCCL blocks until all are there, and one of them may die before it is."""
        failures: list[Exception] = []

        def connect() -> None:
            try:
                self._group.connect()
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=connect, name="samestep-connect")
        thread.start()
        while thread.is_alive():
            if self.ended():
                self.abort()
                break
            thread.join(100 * PAUSE)
        thread.join()
        self.check()
        if failures:
            first = str(failures[0]).splitlines()[0]
            raise ClusterError(f"{self.size} replicas were to be joined by NCCL ({first}); set run.transport=sockets")

    def _part(self, messages: Messages, ours: bool) -> dict[int, list[Tensor]]:
        """By peer, the tensors that the group moves, or those that it does not."""
        found = {peer: [t for t in tensors if self._moves(t) is ours] for peer, tensors in messages.items()}
        return {peer: tensors for peer, tensors in found.items() if tensors}

    def _moves(self, tensor: Tensor) -> bool:
        return tensor.device.type == self._device.type


def _described(tensors: Sequence[Tensor]) -> Tensor:
    """int64 [2 for each]: dtype and number of elements."""
    return torch.tensor([number for tensor in tensors for number in (DTYPES[tensor.dtype], tensor.numel())])


def _before(words: dict[int, Tensor], messages: Messages) -> dict[int, list[Tensor]]:
    peers = [*words, *(peer for peer in messages if peer not in words)]
    return {peer: [*([words[peer]] if peer in words else []), *messages.get(peer, [])] for peer in peers}


def _compare(peer: int, told: Tensor, due: Tensor) -> None:
    if not torch.equal(told, due):
        raise ClusterError(
            f"rank {peer} sends tensors of (dtype, elements) {told.view(-1, 2).tolist()}, but "
            f"{due.view(-1, 2).tolist()} were due; the replicas do not run the same program"
        )
