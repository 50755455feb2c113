"""What rests must not change: sums over weights and moments, taken when they are written and again before the commit
of the next step. Who finds its own changed ends there, before anybody has used it for more than a gradient that is
thrown away; the others go on with what they hold.

A wrapping sum of 64-bit words differs after every flipped bit, and is taken as fast as memory can be read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samestep.sync.slices import Region

WORD = 8  # bytes


class Rest(NamedTuple):
    """Values that rest. kind: weights, moment0, ..., or the name of a tensor that is not trained; region: of the flat
    buffer. owner: the rank for whose slices they are kept, where several replicas hold the same.
    """

    kind: str
    values: Tensor
    region: Region | None = None
    owner: int | None = None


class _Words(NamedTuple):
    """The bytes of a tensor, in place, as words; a tail shorter than a word is added byte by byte. array: the words as
    numpy sees them, on the CPU.
    """

    whole: Tensor
    tail: Tensor | None
    array: NDArray[np.int64] | None


class Seal:
    """Sums over tensors that are changed in place; `renew` takes them anew, which is far cheaper than a new seal."""

    def __init__(self, rests: Sequence[Rest]) -> None:
        self._rests, self._words = rests, [_words(rest.values) for rest in rests]
        self._places: dict[Region, list[int]] = {}  # by region, what lies in it
        self._sums = [_sum(words) for words in self._words]

    def renew(self, but: Sequence[Region] = ()) -> None:
        """What rests now, leaving out what lies in some regions, is as it should be."""
        self._take(self._outside(but))

    def renew_within(self, region: Region) -> None:
        """What rests in a region is as it should be. Cheap just after it was written: it need not come from memory."""
        self._take(self._within(region))

    def broken(self, but: Sequence[Region] = ()) -> list[Rest]:
        """What has changed since, leaving out what lies in some regions."""
        return self._changed(self._outside(but))

    def broken_within(self, region: Region) -> list[Rest]:
        """What of a region has changed since."""
        return self._changed(self._within(region))

    def _take(self, chosen: list[int]) -> None:
        for at in chosen:
            self._sums[at] = _sum(self._words[at])

    def _changed(self, chosen: list[int]) -> list[Rest]:
        return [self._rests[at] for at in chosen if _sum(self._words[at]) != self._sums[at]]

    def _outside(self, regions: Sequence[Region]) -> list[int]:
        known = {at for region in regions for at in self._within(region)}
        return [at for at in range(len(self._rests)) if at not in known]

    def _within(self, region: Region) -> list[int]:
        if region not in self._places:
            self._places[region] = [at for at, rest in enumerate(self._rests) if _inside(rest, region)]
        return self._places[region]

    def claims(self, owners: int) -> Tensor:
        """int64[owners]: of all that is kept for each owner one sum; the same on all replicas that keep it."""
        places = torch.tensor([owners if rest.owner is None else rest.owner for rest in self._rests])
        return torch.zeros(owners + 1, dtype=torch.int64).index_add_(
            0, places, torch.tensor(self._sums, dtype=torch.int64)
        )[:-1]


class Frozen:
    """The tensors of a module that training does not change; a part of them is looked at each time."""

    def __init__(self, module: nn.Module, every: int) -> None:
        named = [*module.named_parameters(), *module.named_buffers()]
        self._rests = [Rest(name, tensor) for name, tensor in named if not tensor.requires_grad and tensor.numel()]
        self._every = every
        self._words = [_words(rest.values) if rest.values.is_contiguous() else None for rest in self._rests]
        self._sums = [self._sum(at) for at in range(len(self._rests))]

    def broken(self, number: int) -> list[Rest]:
        """Of those whose turn it is with `number`."""
        turn = range(number % self._every, len(self._rests), self._every)
        return [self._rests[at] for at in turn if self._sum(at) != self._sums[at]]

    def _sum(self, at: int) -> int:
        """What has gaps has no words in place, and is copied each time."""
        return _sum(self._words[at] or _words(self._rests[at].values.contiguous()))


def _inside(rest: Rest, region: Region) -> bool:
    return rest.region is not None and region.start <= rest.region.start and rest.region.stop <= region.stop


def _sum(words: _Words) -> int:
    """numpy adds at the speed of memory as torch does, and a call of it costs a fifth."""
    whole = int(words.whole.sum() if words.array is None else np.add.reduce(words.array))
    return whole if words.tail is None else int(np.array([whole, int(words.tail.sum())]).sum())


def bits(values: Tensor) -> Tensor:
    """int64[], a wrapping sum over the bytes of a tensor."""
    whole, tail, _ = _words(values.contiguous())
    return whole.sum() if tail is None else whole.sum() + tail.sum(dtype=torch.int64)


def _words(values: Tensor) -> _Words:
    data = values.detach().view(-1)
    end = data.numel() * data.element_size() // WORD * WORD // data.element_size()
    whole = data[:end].view(torch.int64)
    tail = data[end:].view(torch.uint8) if end < data.numel() else None
    return _Words(whole, tail, whole.numpy() if whole.device.type == "cpu" else None)
