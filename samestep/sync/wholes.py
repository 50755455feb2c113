"""Sums of whole numbers times a scale: each lane is rounded by itself, to a scale that all lanes of all replicas share.

A bucket makes two rounds: the replicas agree on the scale of each block, by the largest of all lanes, then send whole
numbers added up over their lanes to the owners. Whole numbers are added exactly, so who adds them changes nothing.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samestep.sync import exact, tree
from samestep.sync.exact import WINDOW
from samestep.sync.flat import cut
from samestep.sync.halves import lane_by_lane
from samestep.sync.slices import Layout, Region
from samestep.wire import codec
from samestep.wire.collective import Collective, Operation, Tag, Work, all_gather
from samestep.wire.formats import BLOCK, LIMITS, bits, blocks, of_sums


class _Begun(NamedTuple):
    """A bucket of this replica's lanes; the first buffer is for the sum."""

    step: int
    bucket: int
    total: Tensor
    lanes: list[Tensor]


class _Scaling(NamedTuple):
    begun: _Begun
    codes: list[Tensor]  # by rank
    work: Work


class _UnderWay(NamedTuple):
    target: Tensor
    scales: Tensor
    sums: list[tuple[Tensor, int]]  # packed, with their widths; the others' are on their way
    work: Work


class Wholes:
    """One replica's part in the reduction. format: int8 or int4."""

    def __init__(
        self, format: str, wire: Collective, layout: Layout, lanes: int, copies: int, device: torch.device
    ) -> None:
        self._format, self._wire, self._layout = format, wire, layout
        self.share = lane_by_lane(exact.share(layout, lanes, wire.rank, wire.size, copies))
        self._lanes = [len(span) for span in tree.spans(lanes, wire.size)]
        self._widths = [bits(LIMITS[format] * count) for count in self._lanes]
        self._like = torch.empty(0, device=device, dtype=torch.uint8)
        largest = max(layout.bucket_region(bucket).size for bucket in range(layout.buckets))
        size = of_sums(format, largest, self._lanes[wire.rank])
        self._packed = [wire.memory(size, self._like) for _ in range(WINDOW)]
        self._sent = 0  # buckets of sums
        self._fresh: deque[_Begun] = deque()
        self._scaling: deque[_Scaling] = deque()
        self._under_way: deque[_UnderWay] = deque()

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        """Never blocks: what has to wait is sent later."""
        region = self._layout.bucket_region(bucket)
        lanes = [cut(buffers[at], region) for at in self.share.sums]
        self._fresh.append(_Begun(step, bucket, buffers[0], lanes))
        self._advance(block=False)

    def finish(self) -> None:
        self._advance(block=True)
        while self._under_way:
            self._finish_oldest()

    def _advance(self, block: bool) -> None:
        """Scales of one bucket, sums of the one before it, and so on: the order in which all replicas send."""
        while self._fresh or self._scaling:
            if self._fresh and len(self._scaling) < 2:
                self._agree(self._fresh.popleft())
            elif not block and not (len(self._scaling) == 2 and self._free()):
                return
            else:
                self._send(self._scaling.popleft())

    def _free(self) -> bool:
        """Whether the sums of the next bucket could be sent at once."""
        full = len(self._under_way) == WINDOW
        return self._scaling[0].work.done() and not (full and not self._under_way[0].work.done())

    def _agree(self, begun: _Begun) -> None:
        most = codec.peaks(begun.lanes[0])
        for lane in begun.lanes[1:]:
            torch.maximum(most, codec.peaks(lane), out=most)
        mine = codec.codes(most, LIMITS[self._format])
        codes = [mine if rank == self._wire.rank else torch.empty_like(mine) for rank in range(self._wire.size)]
        work = all_gather(self._wire, Tag(begun.step, Operation.SCALES, begun.bucket), mine, codes)
        self._scaling.append(_Scaling(begun, codes, work))

    def _send(self, scaling: _Scaling) -> None:
        if len(self._under_way) == WINDOW:
            self._finish_oldest()
        scaling.work.wait()
        (step, bucket, total, lanes), whole = scaling.begun, self._layout.bucket_region(scaling.begun.bucket)
        scales = codec.scales(torch.stack(scaling.codes).amax(0))
        packed, width = self._packed[self._sent % WINDOW], self._widths[self._wire.rank]
        codec.round_off(lanes, scales, width, packed[: whole.size * width // 8])
        owned = [_inside(self._layout.owned(bucket, rank, self._wire.size), whole) for rank in range(self._wire.size)]
        sends = {r: [packed[region.start * width // 8 : region.stop * width // 8]] for r, region in enumerate(owned)}
        own, mine = sends.pop(self._wire.rank), owned[self._wire.rank]
        receives = {r: [self._like.new_empty(mine.size * self._widths[r] // 8)] for r in sends}
        work = self._wire.exchange(Tag(step, Operation.REDUCE, bucket), sends, receives)
        sums = [(own[0], width), *((data[0], self._widths[r]) for r, data in receives.items())]
        target = cut(total, self.share.owned[bucket])
        self._under_way.append(_UnderWay(target, scales[mine.start // BLOCK : blocks(mine.stop)], sums, work))
        self._sent += 1

    def _finish_oldest(self) -> None:
        target, scales, sums, work = self._under_way.popleft()
        work.wait()
        codec.add_up(sums, scales, target)


def _inside(region: Region, within: Region) -> Region:
    return Region(region.start - within.start, region.stop - within.start)
