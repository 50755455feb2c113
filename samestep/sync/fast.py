"""The fast strategy: the backend's own all-reduce, in its own order of additions; every replica updates all.

The bits then depend on the number of replicas. It is what plain data parallelism does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from samestep.sync import tree
from samestep.sync.exchange import News, Propose
from samestep.sync.flat import cut
from samestep.sync.share import Share, held, turns
from samestep.sync.slices import Layout
from samestep.wire.collective import Operation, Reducing, Tag, Work


class Fast:
    def __init__(self, wire: Reducing, layout: Layout, lanes: int, copies: int, device: torch.device) -> None:
        del copies, device  # everything is held by all, and no buffer is
        self._wire = wire
        span, whole = tree.spans(lanes, wire.size)[wire.rank], held(layout, 0, 1, 1)
        self.share = Share(span, turns([[0] + [1] * (len(span) - 1)]), [regions[0] for regions in whole], whole)
        self._under_way: list[Work] = []

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        if self._wire.size > 1:
            tensor = cut(buffers[0], self.share.owned[bucket])
            self._under_way.append(self._wire.all_reduce(Tag(step, Operation.REDUCE, bucket), tensor))

    def finish(self) -> None:
        for work in self._under_way:
            work.wait()
        self._under_way.clear()

    def gather(self, step: int, propose: Propose, buffers: Sequence[Tensor], buckets: Sequence[int]) -> News:
        """Nothing: all regions are owned by all."""
        return {}

    def release(self) -> None:
        """Nothing: all is in the first buffer."""
