"""Sums in bfloat16: each lane's gradient and each node of the tree over the lanes is rounded to it, sent or not.

So the result does not depend on who adds what; the tree and its messages are those of the exact strategy.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from samestep.sync import tree
from samestep.sync.exact import Exact
from samestep.sync.flat import cut
from samestep.sync.share import Share, Turn
from samestep.sync.slices import Layout
from samestep.sync.tree import Node
from samestep.wire import codec
from samestep.wire.collective import Collective


def lane_by_lane(share: Share) -> Share:
    """With a buffer for each lane, from buffer 1 on: what is rounded off a lane is left there. Buffer 0 is for sums."""
    turns = [Turn(1 + at, 0, at) for at in range(len(share.span))]
    return replace(share, turns=turns, sums={1 + at: Node(lane, lane + 1) for at, lane in enumerate(share.span)})


class Halves:
    """One replica's part in the reduction."""

    def __init__(self, wire: Collective, layout: Layout, lanes: int, copies: int, device: torch.device) -> None:
        self._exact = Exact(wire, layout, lanes, copies, device, torch.bfloat16)
        self._layout, self._parts = layout, self._exact.share.sums
        self.share = lane_by_lane(self._exact.share)
        like = torch.empty(0, device=device, dtype=torch.bfloat16)
        self._sums = [wire.memory(layout.total, like) for _ in self._parts]
        self._started: list[tuple[int, Tensor]] = []

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        region = self._layout.bucket_region(bucket)
        lanes = {}
        for at, node in self.share.sums.items():
            values = cut(buffers[at], region)
            lanes[node] = torch.empty_like(values, dtype=torch.bfloat16)
            codec.halve(values, lanes[node])
        for at, part in self._parts.items():
            cut(self._sums[at], region).copy_(tree.fold(part, lanes, lambda left, right: left.add_(right)))
        self._exact.start(step, bucket, self._sums)
        self._started.append((bucket, buffers[0]))

    def finish(self) -> None:
        self._exact.finish()
        for bucket, total in self._started:
            owned = self.share.owned[bucket]
            cut(total, owned).copy_(cut(self._sums[0], owned))
        self._started.clear()
