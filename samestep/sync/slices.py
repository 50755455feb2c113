"""Where each parameter, slice and bucket lies in the flat buffers. Pure functions of integers.

Parameters stand one after the other, the last first (backward reaches it first), each padded to 64 bytes.
The buffer is cut into *buckets* of one size, which are exchanged whole, and these into *slices* of one size,
which have one owner each. Both sizes follow from the recipe and never from the number of replicas.
All numbers are elements (float32) unless said.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ALIGNMENT = 16  # 64 bytes: a kernel's vector loop then starts alike in every parameter
BUCKETS = 8  # at least so many, where the limits allow: the exchange of one hides behind the backward of the next
SMALLEST_BUCKET, LARGEST_BUCKET = 1 << 16, 1 << 23
SLICES_PER_LANE = 4  # in a bucket: an uneven share is then at most a quarter larger
SMALLEST_SLICE, LARGEST_SLICE = 1 << 10, 1 << 20


class Region(NamedTuple):
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Piece(NamedTuple):
    """What one slice holds of one parameter. The unit of the update and of the norm."""

    parameter: int
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """`regions[i]` is where parameter i lies; `pieces[s]` what slice s holds."""

    regions: tuple[Region, ...]
    total: int
    bucket: int
    slice: int
    pieces: tuple[tuple[Piece, ...], ...]

    @property
    def buckets(self) -> int:
        return -(-self.total // self.bucket)

    def bucket_region(self, bucket: int) -> Region:
        return Region(bucket * self.bucket, min(self.total, (bucket + 1) * self.bucket))

    def buckets_of(self, parameter: int) -> range:
        region = self.regions[parameter]
        return range(region.start // self.bucket, (region.stop - 1) // self.bucket + 1)

    def owned(self, bucket: int, owner: int, owners: int) -> Region:
        """The part of a bucket, in whole slices, that one of `owners` replicas updates."""
        start, stop = self.bucket_region(bucket)
        slices = -(-(stop - start) // self.slice)
        low, high = (start + self.slice * (slices * o // owners) for o in (owner, owner + 1))
        return Region(min(low, stop), min(high, stop))

    def part(self, number: int, of: int) -> Region:
        """One of `of` parts of the whole, in whole slices; where there are more of them than slices, some are empty."""
        low, high = (min(self.total, self.slice * (len(self.pieces) * k // of)) for k in (number, number + 1))
        return Region(low, high)

    def portions(self, region: Region, size: int) -> list[Region]:
        """A region that is made of whole slices in parts of whole slices, of about `size` where slices are smaller."""
        step = self.slice * max(1, size // self.slice)
        return [Region(at, min(at + step, region.stop)) for at in range(region.start, region.stop, step)]

    def pieces_in(self, region: Region) -> Iterator[tuple[int, Piece]]:
        """(slice, piece) of a region that is made of whole slices."""
        for index in range(region.start // self.slice, -(-region.stop // self.slice)):
            for piece in self.pieces[index]:
                yield index, piece


def layout(sizes: Sequence[int], lanes: int, *, bucket: int | None = None) -> Layout:
    """Lay out parameters of `sizes` elements, in the order of their registration, for a recipe with `lanes`."""
    if not sizes or min(sizes) < 1:
        raise ValueError("a layout needs at least one parameter and no empty one")
    regions, total = _regions(sizes)
    bucket = bucket or _within(total // BUCKETS, SMALLEST_BUCKET, LARGEST_BUCKET)
    width = min(bucket, _within(bucket // (SLICES_PER_LANE * lanes), SMALLEST_SLICE, LARGEST_SLICE))
    return Layout(regions, total, bucket, width, _pieces(regions, total, width))


def _regions(sizes: Sequence[int]) -> tuple[tuple[Region, ...], int]:
    regions, end = [], 0
    for size in reversed(sizes):
        regions.append(Region(end, end + size))
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return tuple(reversed(regions)), end


def _within(size: int, smallest: int, largest: int) -> int:
    return min(max(1 << max(size, 1).bit_length() - 1, smallest), largest)


def _pieces(regions: Sequence[Region], total: int, width: int) -> tuple[tuple[Piece, ...], ...]:
    pieces: list[list[Piece]] = [[] for _ in range(-(-total // width))]
    for parameter in sorted(range(len(regions)), key=lambda i: regions[i].start):
        start, stop = regions[parameter]
        for index in range(start // width, (stop - 1) // width + 1):
            pieces[index].append(Piece(parameter, max(start, index * width), min(stop, (index + 1) * width)))
    return tuple(tuple(p) for p in pieces)
