"""Where each replica is: one line a replica in memory shared with the engine, and one for what the engine wishes.

Writing it costs no system call, and what a killed replica wrote last can still be read.
"""

import mmap
import os
import struct
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

LINE = struct.Struct("QQd")  # as in Line; in the machine's own order, so that each field is written at once
WORD = struct.Struct("Q")  # of the last line, the wishes: whether to stop, the generation to gather, one that is over
WORDS = struct.Struct("QQQ")  # all of them


class Phase(IntEnum):
    START = 0
    DATA = 1
    FORWARD = 2
    BACKWARD = 3
    EXCHANGE = 4
    UPDATE = 5
    EVALUATE = 6
    SAVE = 7
    DONE = 8


class Wish(IntEnum):
    """What the engine wishes to happen after the step that is open; the highest that any replica has seen counts."""

    NONE = 0
    GATHER = 1  # come together for a new generation
    STOP = 2  # end, with a checkpoint


class Line(NamedTuple):
    step: int  # from 1; 0 before the first
    phase: Phase
    since: float  # seconds of time.monotonic, the same clock for all processes of a host; 0 where nothing was written


class Board:
    def __init__(self, descriptor: int, size: int) -> None:
        self._memory = mmap.mmap(descriptor, (size + 1) * LINE.size)
        self._size = size

    def write(self, rank: int, step: int, phase: Phase, since: float | None = None) -> None:
        """since: now, where it is not told."""
        since = time.monotonic() if since is None else since
        LINE.pack_into(self._memory, rank * LINE.size, step, phase, since)

    def read(self, rank: int) -> Line:
        step, phase, since = LINE.unpack_from(self._memory, rank * LINE.size)
        return Line(step, Phase(phase), since)

    def ask_to_stop(self) -> None:
        """Callable from a signal handler: writes a word of its own."""
        WORD.pack_into(self._memory, self._size * LINE.size, 1)

    def ask_to_gather(self, generation: int) -> None:
        """The members of that generation; those of later ones have come together by then."""
        WORD.pack_into(self._memory, self._size * LINE.size + WORD.size, generation)

    def end(self, generation: int) -> None:
        """A member of it is gone. Those that a cut link keeps from seeing it leave it too."""
        WORD.pack_into(self._memory, self._size * LINE.size + 2 * WORD.size, generation)

    def is_over(self, generation: int) -> bool:
        (ended,) = WORD.unpack_from(self._memory, self._size * LINE.size + 2 * WORD.size)
        return bool(ended >= generation)

    def wish(self, generation: int) -> Wish:
        """Of the engine, for a member of `generation`."""
        stop, gather, _ = LINE.unpack_from(self._memory, self._size * LINE.size)
        return Wish.STOP if stop else Wish.GATHER if gather == generation else Wish.NONE

    def wishes(self) -> tuple[int, ...]:
        """The last line as it is, for a board elsewhere to `take`."""
        return WORDS.unpack_from(self._memory, self._size * LINE.size)

    def take(self, wishes: Sequence[int]) -> None:
        WORDS.pack_into(self._memory, self._size * LINE.size, *wishes)

    def close(self) -> None:
        self._memory.close()


def create(size: int) -> int:
    """A descriptor of fresh shared memory for `size` replicas. It has no name, so nothing can be left behind."""
    descriptor = os.memfd_create("samestep-board")
    os.ftruncate(descriptor, (size + 1) * LINE.size)
    return descriptor
