"""Numbers in few bits: rounded, packed, and what was rounded away. Pure functions of tensors.

Every operation is elementwise and rounds once, half to even, so that the result is the same wherever a tensor is cut
between two blocks, and on how many replicas. Scales have three significant bits, m * 2**e with m of 4 to 7: a whole
number of up to 21 bits times a scale is exact.

A block that is not finite has the scale NaN: all of it is NaN once it is decoded, and a step with it is refused.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from samestep.wire.formats import BLOCK, LIMITS, bits, blocks, of_weights

CHUNK = 1 << 16  # elements worked on at once: they stay in the cache
ILL = 255  # the code of a block that is not finite, or too large for every scale
_LOW = 21  # bits of a float32 that a scale has no use for
_FIRST = (127 - 40) << (23 - _LOW)  # the code 0 is 2**-40, 254 is 1.5 * 2**23: sums of 10 million still have one


def peaks(values: Tensor) -> Tensor:
    """float32[blocks]: the largest magnitude in each block; NaN where one is NaN."""
    found = values.new_empty(blocks(values.numel()))
    for start, stop, width in _chunks(values.numel()):
        rows = values[start:stop].view(-1, width)
        torch.amax(rows.abs(), 1, out=found[start // BLOCK : blocks(stop)])
    return found


def codes(peaks: Tensor, limit: int) -> Tensor:
    """uint8[blocks]: the least scales with which no element is more than `limit` of them."""
    words = (peaks / limit).view(torch.int32)
    above = (words >> _LOW).add_(words.bitwise_and((1 << _LOW) - 1) != 0)
    return above.sub_(_FIRST).clamp_(0, ILL).to(torch.uint8)


def scales(codes: Tensor) -> Tensor:
    """float32[blocks]: what a code stands for."""
    words = (codes.to(torch.int32) + _FIRST) << _LOW
    return words.view(torch.float32).masked_fill_(codes == ILL, torch.nan)


def round_off(lanes: Sequence[Tensor], scales: Tensor, width: int, out: Tensor) -> None:
    """Write the sum over the lanes of their whole numbers to `out`, packed; what was rounded away is left in them.

    No whole number is larger than the limit that the scales are for, as a peak over its scale is less than half a unit
    more.
    """
    for start, stop, cells in _chunks(lanes[0].numel()):
        scale = scales[start // BLOCK : blocks(stop)].view(-1, 1)
        total = None
        for lane in lanes:
            values = lane[start:stop].view(-1, cells)
            whole = (values / scale).round_()
            values.sub_(whole * scale)
            total = whole if total is None else total.add_(whole)
        assert total is not None
        _pack(total.view(-1), width, out[start * width // 8 : stop * width // 8])


def add_up(sums: Sequence[tuple[Tensor, int]], scales: Tensor, out: Tensor) -> None:
    """out: the sum of packed whole numbers, times the scales. sums: with their widths. Exact below 2**24."""
    for start, stop, cells in _chunks(out.numel()):
        scale = scales[start // BLOCK : blocks(stop)].view(-1, 1)
        total, *others = (_unpacked(data[start * width // 8 : stop * width // 8], width) for data, width in sums)
        for other in others:
            total.add_(other)
        torch.mul(total.view(-1, cells), scale, out=out[start:stop].view(-1, cells))


def halve(values: Tensor, out: Tensor) -> None:
    """Write the values in bfloat16 to `out`; what was rounded away is left in them, exactly."""
    for start, stop, _ in _chunks(values.numel()):
        cells, short = values[start:stop], out[start:stop]
        short.copy_(cells)
        cells.sub_(short.float())  # converted by itself: three times as fast as a difference of two dtypes


def _chunks(count: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, elements of a block): whole blocks, then what is left, as a shorter block."""
    whole = count // BLOCK * BLOCK
    for start in range(0, whole, CHUNK):
        yield start, min(start + CHUNK, whole), BLOCK
    if whole < count:
        yield whole, count, count - whole


def _pack(whole: Tensor, width: int, out: Tensor) -> None:
    """Whole numbers in float32 to bytes; of 4 bits two to a byte, the first one in the lower half."""
    if width > 4:
        out.view(_DTYPES[width]).copy_(whole)
        return
    pairs = whole.add_(_EXCESS).to(torch.int8).view(torch.int16)  # to uint8 takes ten times as long
    out.copy_(pairs | (pairs >> 4))


def _unpacked(data: Tensor, width: int) -> Tensor:
    if width > 4:
        return data.view(_DTYPES[width]).float()
    pairs = data.to(torch.int16)
    pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F)
    return pairs.view(torch.uint8).float().sub_(_EXCESS)


_DTYPES = {8: torch.int8, 16: torch.int16, 32: torch.int32}
_EXCESS = 8  # so that numbers of 4 bits have no sign


class Format(Protocol):
    """How new weights are told. difference: from those that all have, which is added there."""

    @property
    def difference(self) -> bool: ...

    def size(self, count: int) -> int:
        """Bytes of so many."""

    def encode(self, values: Tensor, out: Tensor) -> None:
        """values: float32, not changed. out: uint8[size]."""

    def decode(self, data: Tensor, out: Tensor) -> None:
        """The same wherever it is done."""


class _Plain:
    """A dtype of torch."""

    difference = False

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self._name, self._dtype = name, dtype

    def size(self, count: int) -> int:
        return of_weights(self._name, count)

    def encode(self, values: Tensor, out: Tensor) -> None:
        out.view(self._dtype).copy_(values)

    def decode(self, data: Tensor, out: Tensor) -> None:
        out.copy_(data.view(self._dtype))


class _Scaled:
    """Whole numbers, then the codes of their scales."""

    difference = True

    def __init__(self, name: str) -> None:
        self._name, self._limit = name, LIMITS[name]
        self._width = bits(self._limit)

    def size(self, count: int) -> int:
        return of_weights(self._name, count)

    def encode(self, values: Tensor, out: Tensor) -> None:
        whole, scaled = self._parts(out, values.numel())
        for start, stop, cells in _chunks(values.numel()):
            rows, code = values[start:stop].view(-1, cells), scaled[start // BLOCK : blocks(stop)]
            code.copy_(codes(rows.abs().amax(1), self._limit))
            numbers = (rows / scales(code).view(-1, 1)).round_()
            _pack(numbers.view(-1), self._width, whole[start * self._width // 8 : stop * self._width // 8])

    def decode(self, data: Tensor, out: Tensor) -> None:
        whole, scaled = self._parts(data, out.numel())
        add_up([(whole, self._width)], scales(scaled), out)

    def _parts(self, data: Tensor, count: int) -> tuple[Tensor, Tensor]:
        middle = count * self._width // 8
        return data[:middle], data[middle:]


FORMATS: dict[str, Format] = {
    "float32": _Plain("float32", torch.float32),
    "bfloat16": _Plain("bfloat16", torch.bfloat16),
    "int8": _Scaled("int8"),
    "int4": _Scaled("int4"),
}


def rounded(format: Format, values: Tensor) -> Tensor:
    """What others have once they were told."""
    data = torch.empty(format.size(values.numel()), dtype=torch.uint8, device=values.device)
    format.encode(values, data)
    told = torch.empty_like(values)
    format.decode(data, told)
    return told
