"""Transport for tensors on a device: they go through memory of the host, over any other transport.

So several replicas may share one device, and death, cancel and recovery are those of the transport below. Copies run on
a stream beside the computation; a message is sent once its copy is there. No thread: what waits for a copy is sent with
the next call, so that all methods but `cancel` are for one thread at a time, in an order that all replicas share.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samestep.wire.collective import Collective, Messages, Tag
from samestep.wire.side import Mark, Side

Begin = Callable[[], Any]  # gives the work, or the loan, of the transport below
SENT, TAKEN, SEEN = range(3)  # what memory of the host is for; what is only seen elsewhere is not even written


class _Room(NamedTuple):
    """Memory of the host, of bytes."""

    use: int
    bytes: Tensor

    def like(self, tensor: Tensor) -> Tensor:
        """Its beginning, in the dtype and shape of a tensor."""
        return self.bytes[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


@dataclass
class _Job:
    """An exchange, and what it has of the host's memory."""

    begin: Begin
    copied: Mark  # when what is to be sent is on the host
    begun: Mark  # after what the targets were used for before
    sends: Messages  # as they were asked for; kept, for a copy may still read them
    receives: Messages
    places: Messages  # where they arrive on the host
    rooms: list["_Room"]  # that it has until it is over
    under: Any = None  # the work or loan of the transport below, once it is begun


class StagedWork:
    def __init__(self, wire: "Staged", job: _Job) -> None:
        self._wire, self._job = wire, job
        self._over = False

    def wait(self) -> None:
        if not self._over:
            self._wire.push(self._job)
            self._job.under.wait()
            self._wire.arrived(self._job, self._job.places)
            self._wire.reuse(self._job)
            self._over = True

    def done(self) -> bool:
        return self._over or self._wire.is_done(self._job)


class StagedLoan:
    """What arrives is copied to its target, so that the peers have theirs back as early as they can."""

    def __init__(self, wire: "Staged", job: _Job) -> None:
        self._wire, self._job = wire, job
        self._there = self._over = False

    def wait(self) -> Messages:
        if not self._there:
            self._wire.push(self._job)
            self._wire.arrived(self._job, self._job.under.wait())
            self._job.under.release()
            self._there = True
        return self._job.receives

    def done(self) -> bool:
        return self._there or self._wire.is_done(self._job)

    def release(self) -> None:
        """It is, since it was copied."""

    def returned(self) -> None:
        if not self._over:
            self._wire.push(self._job)
            self._job.under.returned()
            self._wire.reuse(self._job)
            self._over = True


class Staged:
    """The replicas of `inner`, with tensors of the device of `side`. Both are closed by `close`."""

    def __init__(self, inner: Collective, side: Side) -> None:
        self.rank, self.size = inner.rank, inner.size
        self._inner: Any = inner
        self._side = side
        self._waiting: deque[_Job] = deque()  # for their copies; in the order in which all replicas send
        self._idle: list[_Room] = []

    @property
    def hosts(self) -> Sequence[int]:
        return self._inner.hosts  # type: ignore[no-any-return]

    @property
    def bytes_sent(self) -> int:
        return self._inner.bytes_sent  # type: ignore[no-any-return]

    @property
    def shortage(self) -> str:
        return self._inner.shortage  # type: ignore[no-any-return]

    def memory(self, count: int, like: Tensor) -> Tensor:
        return like.new_zeros(count)

    def exchange(self, tag: Tag, sends: Messages, receives: Messages) -> StagedWork:
        return StagedWork(self, self._begin(TAKEN, tag, sends, receives))

    def borrow(self, tag: Tag, sends: Messages, receives: Messages) -> StagedLoan:
        return StagedLoan(self, self._begin(SEEN, tag, sends, receives))

    def all_reduce(self, tag: Tag, tensor: Tensor) -> StagedWork:
        """Where the transport below adds."""
        rooms = [self._room(SENT, tensor)]
        places, mine = {self.rank: [rooms[0].like(tensor)]}, {self.rank: [tensor]}
        begun = self._side.mark()
        copied = self._side.copy([(places[self.rank][0], tensor)], begun)
        begin = partial(self._inner.all_reduce, tag, places[self.rank][0])
        return StagedWork(self, self._queue(_Job(begin, copied, begun, mine, mine, places, rooms)))

    def cancel(self, reason: str) -> None:
        self._inner.cancel(reason)

    def close(self) -> None:
        self._side.close()
        self._inner.close()

    # What works and loans call

    def push(self, job: _Job) -> None:
        """Send it, and all before it, whatever has to be waited for."""
        while job.under is None:
            self._waiting[0].copied.wait()
            self._advance()

    def is_done(self, job: _Job) -> bool:
        self._advance()
        return job.under is not None and bool(job.under.done())

    def arrived(self, job: _Job, found: Messages) -> None:
        """Bring what has arrived to the device."""
        pairs = [
            (target, values)
            for rank, targets in job.receives.items()
            for target, values in zip(targets, found[rank], strict=True)
            if target is not values
        ]
        self._side.copy(pairs, job.begun).wait()

    def reuse(self, job: _Job) -> None:
        """Nobody needs its memory of the host any more."""
        self._idle += job.rooms
        job.rooms = []

    def _begin(self, use: int, tag: Tag, sends: Messages, receives: Messages) -> _Job:
        begun, rooms, copies = self._side.mark(), list[_Room](), dict[tuple[int, int, torch.dtype], Tensor]()
        pairs = []
        for tensor in (tensor for tensors in sends.values() for tensor in tensors if self._stages(tensor)):
            if _key(tensor) not in copies:  # what goes to several is copied once
                rooms.append(self._room(SENT, tensor))
                copies[_key(tensor)] = rooms[-1].like(tensor)
                pairs.append((copies[_key(tensor)], tensor))
        told = {r: [copies.get(_key(tensor), tensor) for tensor in tensors] for r, tensors in sends.items()}
        places = {r: [self._place(use, tensor, rooms) for tensor in tensors] for r, tensors in receives.items()}
        copied = self._side.copy(pairs, begun)
        how = self._inner.exchange if use == TAKEN else self._inner.borrow
        return self._queue(_Job(partial(how, tag, told, places), copied, begun, sends, receives, places, rooms))

    def _queue(self, job: _Job) -> _Job:
        self._waiting.append(job)
        self._advance()
        return job

    def _advance(self) -> None:
        while self._waiting and self._waiting[0].copied.reached():
            job = self._waiting.popleft()
            job.under = job.begin()

    def _stages(self, tensor: Tensor) -> bool:
        return tensor.device.type == self._side.device.type

    def _place(self, use: int, target: Tensor, rooms: list[_Room]) -> Tensor:
        """Where the host takes in what is for a target."""
        if not self._stages(target):
            return target
        rooms.append(self._room(use, target))
        return rooms[-1].like(target)

    def _room(self, use: int, like: Tensor) -> _Room:
        """Of so many bytes at least; kept when it is not needed any more, as most steps want the same."""
        fitting = [room for room in self._idle if room.use == use and room.bytes.nbytes >= like.nbytes]
        if not fitting:
            return _Room(use, self._memory(use, like.nbytes))
        found = min(fitting, key=lambda room: room.bytes.nbytes)
        self._idle = [room for room in self._idle if room is not found]
        return found

    def _memory(self, use: int, size: int) -> Tensor:
        if use == SEEN:
            return torch.empty(size, dtype=torch.uint8)
        if use == SENT:
            shown: Tensor = self._inner.memory(size, torch.empty(0, dtype=torch.uint8))
            if self._side.pin(shown):
                return shown
        return self._side.room(size)


def _key(tensor: Tensor) -> tuple[int, int, torch.dtype]:
    return tensor.data_ptr(), tensor.nbytes, tensor.dtype
