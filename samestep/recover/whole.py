"""Parts of parameters that are cut over the shards of a replica, and the same elements of the whole parameters.

A checkpoint holds whole parameters, so that any number of shards can load it. Seen flat, a whole parameter is made of
*lines* of as many elements as there are in one place of the dimensions before the cut; each shard has an equal part of
each line. Parts are ranges of a shard's own elements, cut anywhere.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from samestep.model.split import Cut
from samestep.recover.shards import Part

if TYPE_CHECKING:
    from torch import Tensor


Bytes = Iterable[tuple[Part, memoryview]]  # float32, little-endian


def joined(part: Part, values: Sequence["Tensor"], cut: Cut) -> dict[Part, "Tensor"]:
    """The parts of the whole parameter that `part` of each shard make up. values: by shard, one-dimensional."""
    import torch

    if cut.dim is None:
        return {part: values[0]}
    shards, length = len(values), math.prod(cut.shape[cut.dim :]) // len(values)
    found = {}
    for start, stop in _ranges(part.start, part.stop, length):
        (line, at), size = divmod(start, length), stop - start
        pieces = [each[start - part.start : stop - part.start] for each in values]
        if size % length == 0:
            lines = torch.stack([piece.view(-1, length) for piece in pieces], 1).reshape(-1)
            found[_from(part, line * shards * length, lines.numel())] = lines
        else:
            places = [(line * shards + shard) * length + at for shard in range(shards)]
            found |= {_from(part, place, size): piece for place, piece in zip(places, pieces, strict=True)}
    return found


def own(parts: Bytes, cuts: Mapping[str, Cut], shard: int, shards: int) -> Iterator[tuple[Part, memoryview]]:
    """Of parts of whole parameters what one shard has, as parts of its own."""
    for part, data in parts:
        cut = cuts[part.parameter]
        if cut.dim is None:
            yield part, data
        else:
            length = math.prod(cut.shape[cut.dim :]) // shards
            yield from _own(part, np.frombuffer(data, np.float32), length, shard, shards)


def _own(
    part: Part, values: NDArray[np.float32], length: int, shard: int, shards: int
) -> Iterator[tuple[Part, memoryview]]:
    for start, stop in _ranges(part.start, part.stop, shards * length):
        (line, at), piece = divmod(start, shards * length), values[start - part.start : stop - part.start]
        if len(piece) % (shards * length) == 0:
            mine = np.ascontiguousarray(piece.reshape(-1, shards, length)[:, shard]).reshape(-1)
            yield _from(part, line * length, len(mine)), mine.data
            continue
        low, high = max(at, shard * length), min(at + len(piece), (shard + 1) * length)
        if low < high:
            place = line * length + low - shard * length
            yield _from(part, place, high - low), piece[low - at : high - at].data


def _ranges(start: int, stop: int, length: int) -> Iterator[tuple[int, int]]:
    """A range as the end of a line, whole lines, and the beginning of one; none of them empty."""
    first = min(stop, -(-start // length) * length)
    last = max(first, stop // length * length)
    return ((low, high) for low, high in pairwise((start, first, last, stop)) if low < high)


def _from(part: Part, start: int, size: int) -> Part:
    return Part(part.kind, part.parameter, start, start + size)
