"""The fast strategy: the backend's own all-reduce, in its own order of additions; every replica updates all.

The bits then depend on the number of replicas. It is what plain data parallelism does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from samestep.sync import tree
from samestep.sync.accumulate import Turn, turns
from samestep.sync.exchange import Propose
from samestep.sync.flat import cut
from samestep.sync.slices import Layout, Region
from samestep.wire.collective import Operation, Reducing, Tag, Work


class Fast:
    def __init__(self, wire: Reducing, layout: Layout, lanes: int, device: torch.device) -> None:
        del device  # holds no buffer
        self._wire, self._layout = wire, layout
        self.span = tree.spans(lanes, wire.size)[wire.rank]
        self._under_way: list[Work] = []

    def turns(self) -> list[Turn]:
        return turns([[0] + [1] * (len(self.span) - 1)])

    def owned(self, bucket: int) -> Region:
        return self._layout.bucket_region(bucket)

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        if self._wire.size > 1:
            tensor = cut(buffers[0], self.owned(bucket))
            self._under_way.append(self._wire.all_reduce(Tag(step, Operation.REDUCE, bucket), tensor))

    def finish(self) -> None:
        for work in self._under_way:
            work.wait()
        self._under_way.clear()

    def gather(self, step: int, propose: Propose, buffers: Sequence[Tensor]) -> None:
        """Nothing: all regions are owned by all."""
