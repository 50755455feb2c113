"""Memory that the replicas of one host share: one file without a name, in which each fills a range of its own.

The engine makes it, empty, and hands it to all members of a generation. It is gone with the last of them, whatever ends
them, and needs no room in /dev/shm. One file for all takes one descriptor, however many they are.
"""

import contextlib
import mmap
import os
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

RANGE = 1 << 40  # bytes of the file that are one replica's: what is not filled takes no memory


class Place(NamedTuple):
    """Where in the file something lies: in the segment of `size` bytes from `start` on, at byte `at` of it."""

    start: int
    size: int
    at: int


@dataclass(frozen=True)
class Segment:
    """A part of the file that was filled at once, mapped."""

    start: int
    data: mmap.mmap
    address: int

    @property
    def size(self) -> int:
        return len(self.data)

    def place(self, tensor: Tensor) -> Place | None:
        """Where a tensor lies, if it does so in this segment."""
        at = tensor.data_ptr() - self.address
        return Place(self.start, self.size, at) if 0 <= at <= self.size - tensor.nbytes else None


class Segments:
    """One replica's view of the file, which it takes over. A segment stays for as long as a tensor lies in it."""

    def __init__(self, file: int, rank: int) -> None:
        self._file, self._end = file, rank * RANGE
        self._own: list[Segment] = []
        self._of_peers: dict[int, Segment] = {}  # by start
        self._idle: list[Segment] = []  # for copies of what lies elsewhere

    def zeros(self, count: int, dtype: torch.dtype) -> Tensor:
        """OSError where memory is lacking: it is taken here, not when it is first written."""
        segment = self._grow(count * dtype.itemsize)
        self._own.append(segment)
        return torch.frombuffer(segment.data, dtype=dtype, count=count)

    def place(self, tensor: Tensor) -> Place | None:
        """Where a tensor lies for the peers; None: not in this replica's range."""
        return next(filter(None, (segment.place(tensor) for segment in self._own)), None)

    def copy(self, tensor: Tensor) -> Segment:
        """A segment that begins with the bytes of a tensor, until `reuse`. OSError where memory is lacking."""
        fitting = [segment for segment in self._idle if segment.size >= tensor.nbytes]
        segment = min(fitting, key=lambda each: each.size) if fitting else self._grow(tensor.nbytes)
        with contextlib.suppress(ValueError):
            self._idle.remove(segment)
        torch.frombuffer(segment.data, dtype=tensor.dtype, count=tensor.numel()).copy_(tensor.detach().view(-1))
        return segment

    def reuse(self, segment: Segment) -> None:
        self._idle.append(segment)

    def see(self, place: Place, like: Tensor) -> Tensor:
        """What lies at a place that a peer has told, of the dtype and shape of `like`."""
        if place.start not in self._of_peers:
            self._of_peers[place.start] = _mapped(self._file, place.start, place.size, 0)
        data = self._of_peers[place.start].data
        return torch.frombuffer(data, dtype=like.dtype, count=like.numel(), offset=place.at).view(like.shape)

    def close(self) -> None:
        os.close(self._file)
        self._own, self._of_peers, self._idle = [], {}, []

    def _grow(self, size: int) -> Segment:
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        os.posix_fallocate(self._file, self._end, size)
        segment = _mapped(self._file, self._end, size, mmap.MAP_POPULATE)
        self._end += size
        return segment


def _mapped(file: int, start: int, size: int, flags: int) -> Segment:
    data = mmap.mmap(file, size, mmap.MAP_SHARED | flags, offset=start)
    return Segment(start, data, torch.frombuffer(data, dtype=torch.uint8).data_ptr())
