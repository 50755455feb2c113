"""Transport between threads of one process: a real one, for tests, simulations and single-process tools.

Bytes are counted as on the other transports. Faults are data: `faults[(rank, tag)]` is raised when that
replica starts that exchange.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from samestep.errors import ClusterError, PeerLost
from samestep.wire.collective import Given, Messages, Operation, Tag

T = TypeVar("T")
Faults = Mapping[tuple[int, Tag], Exception]


class _Hub:
    """What the replicas of one process share: messages on their way, and the reason why nothing moves any more."""

    def __init__(self, faults: Faults) -> None:
        self.changed = threading.Condition()
        self.on_the_way: dict[tuple[int, int], deque[tuple[Tag, Tensor]]] = defaultdict(deque)
        self.failure: Exception | None = None
        self.faults = faults

    def fail(self, error: Exception) -> None:
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()


class LoopbackWork:
    def __init__(self, hub: _Hub, rank: int, tag: Tag, receives: Messages, after: Callable[[], None]) -> None:
        self._hub, self._rank, self._tag, self._after = hub, rank, tag, after
        self._due = [(peer, tensor) for peer, tensors in receives.items() for tensor in tensors]

    def wait(self) -> None:
        for peer, tensor in self._due:
            tensor.copy_(self._take(peer, tensor))
        self._due = []
        self._after()

    def done(self) -> bool:
        return not self._due

    def _take(self, peer: int, expected: Tensor) -> Tensor:
        queue = self._hub.on_the_way[peer, self._rank]
        with self._hub.changed:
            self._hub.changed.wait_for(lambda: queue or self._hub.failure)
            if not queue:
                raise self._hub.failure or PeerLost(f"replica {peer} went away")
            tag, tensor = queue.popleft()
        sent, due = (tag, tensor.dtype, tensor.numel()), (self._tag, expected.dtype, expected.numel())
        if sent != due:
            raise ClusterError(f"replica {peer} sent {_describe(*sent)}, but {_describe(*due)} was due")
        return tensor.view(expected.shape)


class Loopback:
    """One replica's end. Make all ends of a generation with `connect`."""

    def __init__(self, rank: int, size: int, hub: _Hub, hosts: Sequence[int]) -> None:
        self.rank, self.size, self.bytes_sent, self.shortage = rank, size, 0, ""
        self.hosts = hosts
        self._hub = hub

    def memory(self, count: int, like: Tensor) -> Tensor:
        return like.new_zeros(count)

    def borrow(self, tag: Tag, sends: Messages, receives: Messages) -> Given:
        return Given(self.exchange(tag, sends, receives), receives)

    def exchange(self, tag: Tag, sends: Messages, receives: Messages) -> LoopbackWork:
        self._send(tag, sends)
        return LoopbackWork(self._hub, self.rank, tag, receives, lambda: None)

    def all_reduce(self, tag: Tag, tensor: Tensor) -> LoopbackWork:
        others = {r: [torch.empty_like(tensor)] for r in range(self.size) if r != self.rank}
        mine = tensor.clone()
        self._send(tag, {r: [mine] for r in others})

        def add() -> None:
            torch.sum(torch.stack([mine if r == self.rank else others[r][0] for r in range(self.size)]), 0, out=tensor)

        return LoopbackWork(self._hub, self.rank, tag, others, add)

    def cancel(self, reason: str) -> None:
        self._hub.fail(PeerLost(reason))

    def close(self) -> None:
        self._hub.fail(PeerLost(f"replica {self.rank} went away"))

    def _send(self, tag: Tag, sends: Messages) -> None:
        if error := self._hub.faults.get((self.rank, tag)):
            raise error
        with self._hub.changed:
            if self._hub.failure:
                raise self._hub.failure
            for peer, tensors in sends.items():
                self._hub.on_the_way[self.rank, peer].extend((tag, t.detach().clone()) for t in tensors)
                self.bytes_sent += sum(t.nbytes for t in tensors)
            self._hub.changed.notify_all()


def connect(size: int, faults: Faults | None = None, hosts: Sequence[int] | None = None) -> list[Loopback]:
    """hosts: made-up ones, by rank; default: all are on one."""
    hub = _Hub(faults or {})
    return [Loopback(rank, size, hub, hosts or [0] * size) for rank in range(size)]


def run(
    size: int, replica: Callable[[Loopback], T], faults: Faults | None = None, hosts: Sequence[int] | None = None
) -> list[T]:
    """Call `replica(wire)` in one thread a replica and return the results by rank; the first failure is raised."""
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    compute_threads = torch.get_num_threads()

    def body(wire: Loopback) -> None:
        torch.set_num_threads(compute_threads)  # a new thread has another count up to its first parallel loop
        try:
            results[wire.rank] = replica(wire)
        except BaseException as error:
            errors.append(error)
            wire.cancel(f"replica {wire.rank} failed: {error}")

    threads = [threading.Thread(target=body, args=(wire,)) for wire in connect(size, faults, hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, PeerLost)), errors[0])
    return [results[rank] for rank in range(size)]


def _describe(tag: Tag, dtype: torch.dtype, count: int) -> str:
    known = tag.operation in set(Operation)
    return f"{count} x {str(dtype).removeprefix('torch.')} for {tag if known else tuple(tag)}"
