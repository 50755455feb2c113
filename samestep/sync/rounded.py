"""Strategies whose numbers travel in few bits: one way to add up, one to tell the new weights. What is rounded, and to
what, follows from the recipe and never from the replicas.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from samestep.sync.exact import Exact
from samestep.sync.exchange import News, Propose
from samestep.sync.halves import Halves
from samestep.sync.news import Telling
from samestep.sync.share import Share
from samestep.sync.slices import Layout
from samestep.sync.wholes import Wholes
from samestep.wire.collective import Collective
from samestep.wire.formats import Formats


class Reduction(Protocol):
    """The first half of an `Exchange`. What is rounded off a lane is left in its buffer."""

    @property
    def share(self) -> Share: ...

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None: ...

    def finish(self) -> None: ...


SUMS: dict[str, Callable[[Collective, Layout, int, int, torch.device], Reduction]] = {
    "float32": Exact,
    "bfloat16": Halves,
    "int8": partial(Wholes, "int8"),
    "int4": partial(Wholes, "int4"),
}


class Rounded:
    """An `Exchange` of these formats."""

    def __init__(
        self, wire: Collective, layout: Layout, lanes: int, copies: int, device: torch.device, formats: Formats
    ) -> None:
        self._sums = SUMS[formats.sums](wire, layout, lanes, copies, device)
        self.share = self._sums.share
        self._news = Telling(formats.weights, wire, layout, self.share, copies)

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        self._sums.start(step, bucket, buffers)

    def finish(self) -> None:
        self._sums.finish()

    def gather(self, step: int, propose: Propose, buffers: Sequence[Tensor], buckets: Sequence[int]) -> News:
        self._news.gather(step, propose, buffers, buckets)
        return {}

    def release(self) -> None:
        """Nothing: all is in the first buffer."""
