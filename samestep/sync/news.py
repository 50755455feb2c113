"""New weights told in few bits: rounded, or as what they differ by from the weights that all have.

The owner computes with what it has told, like all others, and keeps its own exact weights as masters.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samestep.sync.exact import WINDOW
from samestep.sync.exchange import Propose
from samestep.sync.flat import cut
from samestep.sync.share import Share, holders
from samestep.sync.slices import Layout
from samestep.wire.codec import FORMATS
from samestep.wire.collective import Collective, Operation, Tag, Work


class _OnTheWay(NamedTuple):
    work: Work
    told: list[tuple[Tensor, Tensor]]  # what arrives, and where it belongs once it is decoded


class Telling:
    """One replica's part in the gather."""

    def __init__(self, format: str, wire: Collective, layout: Layout, share: Share, copies: int) -> None:
        self._format, self._wire, self._layout, self._share = FORMATS[format], wire, layout, share
        self._kept = [holders(owner, wire.size, copies) for owner in range(wire.size)]

    def gather(self, step: int, propose: Propose, buffers: Sequence[Tensor], buckets: Sequence[int]) -> None:
        if self._wire.size == 1:
            return
        works: deque[_OnTheWay] = deque()
        for bucket in buckets:
            if len(works) == WINDOW:
                self._take(works.popleft())
            works.append(self._tell(Tag(step, Operation.GATHER, bucket), propose, buffers[0]))
        while works:
            self._take(works.popleft())

    def _tell(self, tag: Tag, propose: Propose, gathered: Tensor) -> _OnTheWay:
        rank, gradient = self._wire.rank, cut(gathered, self._share.owned[tag.bucket])
        news = torch.empty_like(gradient)
        propose(tag.bucket, news)
        said = self._blank(gradient)
        self._format.encode(news, said)
        sends, receives, told = {}, {}, []
        for peer in range(self._wire.size):
            if peer == rank:
                continue
            place = cut(gathered, self._layout.owned(tag.bucket, peer, self._wire.size))
            keeps = rank in self._kept[peer]  # it makes the same update, from the gradient
            sends[peer] = [gradient if peer in self._kept[rank] else said]
            receives[peer] = [place if keeps else self._blank(place)]
            told += [] if keeps else [(receives[peer][0], place)]
        return _OnTheWay(self._wire.exchange(tag, sends, receives), told)

    def _take(self, arriving: _OnTheWay) -> None:
        arriving.work.wait()
        for data, place in arriving.told:
            self._format.decode(data, place)

    def _blank(self, values: Tensor) -> Tensor:
        return values.new_empty(self._format.size(values.numel()), dtype=torch.uint8)
