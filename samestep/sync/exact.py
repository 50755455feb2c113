"""The exact strategy: one fixed tree of additions, owners that update slices, and a gather.

Replica r sends, for each bucket, the partial sums of its lanes to the owner of each slice; the owner adds them
in the tree's order. Only the order of additions matters for the bits, and it never mentions a replica.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samestep.sync import tree
from samestep.sync.exchange import News, Propose
from samestep.sync.flat import cut
from samestep.sync.share import Share, held, holders, turns
from samestep.sync.slices import Layout, Region
from samestep.sync.tree import Node
from samestep.wire.collective import Collective, Loan, Messages, Operation, Tag

WINDOW = 2  # buckets on their way at once: 4 were no faster


def share(layout: Layout, lanes: int, rank: int, size: int, copies: int) -> Share:
    """What `rank` of `size` replicas has to do."""
    span = tree.spans(lanes, size)[rank]
    parts = tree.parts(lanes, span)
    return Share(
        span,
        turns([tree.merges(part) for part in parts]),
        [layout.owned(bucket, rank, size) for bucket in range(layout.buckets)],
        held(layout, rank, size, copies),
        dict(enumerate(parts)),
    )


def add_up(lanes: int, sums: dict[Node, Tensor], target: Tensor) -> None:
    """The whole tree into `target`, one of the sums; the others are written over."""
    total = tree.fold(
        Node(0, lanes), sums, lambda left, right: right.add_(left) if right is target else left.add_(right)
    )
    if total is not target:
        target.copy_(total)


class _UnderWay(NamedTuple):
    loan: Loan
    mine: dict[Node, Tensor]  # the partial sums of this replica
    target: Tensor


class Exact:
    """One replica's exchange of gradients and weights. dtype: of what is added up."""

    def __init__(
        self,
        wire: Collective,
        layout: Layout,
        lanes: int,
        copies: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._wire, self._layout, self._lanes = wire, layout, lanes
        self._parts = [tree.parts(lanes, span) for span in tree.spans(lanes, wire.size)]
        self._holders = holders(wire.rank, wire.size, copies)
        self.share = share(layout, lanes, wire.rank, wire.size, copies)
        self._peers = [r for r in range(wire.size) if r != wire.rank]
        self._waiting: deque[tuple[int, int, Sequence[Tensor]]] = deque()
        self._under_way: deque[_UnderWay] = deque()
        self._largest = max(region.size for region in self.share.owned)
        self._slot = self._largest * sum(len(self._parts[r]) for r in self._peers)  # a bucket's partial sums
        # Not written, and so no memory yet, where the transport shows what the peers have.
        self._scratch = torch.empty(WINDOW * self._slot, device=device, dtype=dtype)
        self._places_of_new = list(itertools.accumulate((r.size for r in self.share.owned), initial=0))
        self._new = wire.memory(self._places_of_new[-1] if self._peers else 0, self._scratch)
        self._lent: list[Loan] = []
        self._told: list[Loan] = []

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        """Never blocks: a bucket that finds the window full is sent later."""
        self._waiting.append((step, bucket, buffers))
        self._advance(block=False)

    def finish(self) -> None:
        self._advance(block=True)
        while self._under_way:
            self._finish_oldest()
        for loan in self._lent:
            loan.returned()
        self._lent.clear()

    def _advance(self, block: bool) -> None:
        while self._waiting:
            if len(self._under_way) == WINDOW:
                if not block and not self._under_way[0].loan.done():
                    return
                self._finish_oldest()
            self._send(*self._waiting.popleft())

    def _send(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        mine = self._parts[self._wire.rank]
        region = self.share.owned[bucket]
        sums = {part: cut(buffer, region) for part, buffer in zip(mine, buffers, strict=False)}
        sends = {r: [cut(b, self._owned_by(bucket, r)) for b in buffers[: len(mine)]] for r in self._peers}
        loan = self._wire.borrow(Tag(step, Operation.REDUCE, bucket), sends, self._places(bucket, region.size))
        self._under_way.append(_UnderWay(loan, sums, sums[mine[0]]))

    def gather(self, step: int, propose: Propose, buffers: Sequence[Tensor], buckets: Sequence[int]) -> News:
        """The others' new weights stay where they are told, if this replica can read them there."""
        for loan in self._told:
            loan.returned()
        self._told = [self._tell(step, bucket, propose, buffers[0]) for bucket in buckets] if self._peers else []
        return {b: self._take(b, loan.wait(), buffers[0]) for b, loan in zip(buckets, self._told, strict=False)}

    def release(self) -> None:
        for loan in self._told:
            loan.release()

    def _tell(self, step: int, bucket: int, propose: Propose, gathered: Tensor) -> Loan:
        start, region = self._places_of_new[bucket], self.share.owned[bucket]
        new, gradient = self._new[start : start + region.size], cut(gathered, region)
        propose(bucket, new)
        sends = {r: [gradient if r in self._holders else new] for r in self._peers}
        receives = {r: [cut(gathered, self._owned_by(bucket, r))] for r in self._peers}
        return self._wire.borrow(Tag(step, Operation.GATHER, bucket), sends, receives)

    def _take(self, bucket: int, told: Messages, gathered: Tensor) -> list[tuple[Region, Tensor]]:
        """What is new of a bucket, by region. The gradients of what this replica holds too are copied."""
        found = {rank: (self._owned_by(bucket, rank), values) for rank, (values,) in told.items()}
        for rank in self.share.held[bucket].keys() & found.keys():
            region, values = found.pop(rank)
            cut(gathered, region).copy_(values)
        return list(found.values())

    def _owned_by(self, bucket: int, rank: int) -> Region:
        return self._layout.owned(bucket, rank, self._wire.size)

    def _places(self, bucket: int, size: int) -> dict[int, list[Tensor]]:
        """Where the partial sums of a bucket arrive, by peer."""
        place, result = self._slot * (bucket % WINDOW), {}
        for peer in self._peers:
            stop = place + size * len(self._parts[peer])
            result[peer] = list(self._scratch[place:stop].view(len(self._parts[peer]), size))
            place = stop
        return result

    def _finish_oldest(self) -> None:
        loan, sums, target = self._under_way.popleft()
        for peer, arrived in loan.wait().items():
            sums.update(zip(self._parts[peer], arrived, strict=True))
        add_up(self._lanes, sums, target)
        loan.release()
        self._lent.append(loan)
