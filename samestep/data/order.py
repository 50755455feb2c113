"""Which rows each step reads: pure functions of the seed, the step and the number of rows, never of the machines.

The mixing is SplitMix64's (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014, figure 17).
It is written out here because a run must be the same under every future version of every library.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samestep.errors import DataError

Integers = NDArray[np.int64]
Shape = tuple[int, int, int]  # lanes, micro-batches a lane, rows a micro-batch

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MISSING = -1  # the place of a row that a short step does not have


def mix(*integers: int) -> int:
    """A well mixed 64-bit number; the low 32 bits alone will do as a seed. Each integer must be in [0, 2**64)."""
    state = len(integers)
    for integer in integers:
        if not 0 <= integer <= WORD:
            raise ValueError(f"mix takes integers in [0, 2**64), not {integer}")
        state = _finish((state + GOLDEN & WORD) ^ integer)
    return state


def permutation(seed: int, epoch: int, n: int) -> Integers:
    """int64[n]: the rows of an epoch in the order they are read. O(n log n), so keep it for the epoch."""
    return np.argsort(_stream(mix(seed, epoch), n), kind="stable").astype(np.int64)


def rows_of_epoch(weight: float, rows: int) -> int:
    """How many rows of a source an epoch reads that reads it `weight` times; at least one."""
    return max(1, round(weight * rows))


def drawn(seed: int, epoch: int, rows: Sequence[int], weights: Sequence[float]) -> Integers:
    """int64: the rows that an epoch reads, in order, of several sources; those of source s come after all of s - 1.

    rows, weights: of each source; a weight of 2 reads every row twice an epoch, one of 0.5 half of them, and the
    others in the next epoch. Epochs are equally long.
    """
    before = np.cumsum([0, *rows])
    sources = enumerate(zip(rows, weights, strict=True))
    together = np.concatenate([_window(mix(seed, 1 + s), epoch, n, w) + before[s] for s, (n, w) in sources])
    return together[permutation(seed, epoch, len(together))]


def _window(seed: int, epoch: int, rows: int, weight: float) -> Integers:
    """The part that an epoch reads of one source, whose passes over all rows follow one another without end.

    Whole passes are in the source's own order, since the epoch is shuffled; a part of one is shuffled by its pass.
    """
    count = rows_of_epoch(weight, rows)
    parts, place, stop = [], epoch * count, (epoch + 1) * count
    while place < stop:
        number, within = divmod(place, rows)
        here = min(stop - place, rows - within)
        whole = here == rows
        parts.append(np.arange(rows) if whole else permutation(seed, number, rows)[within : within + here])
        place += here
    return np.concatenate(parts)


def rows_of_step(seed: int, step: int, rows: int, shape: Shape) -> Integers:
    """int64[lanes, accumulate, micro_batch]: the rows of a step, counted from 0; MISSING where there is none.

    Of one source, every row of which is read once an epoch, so an epoch's last step may be short.
    """
    epoch, within = divmod(step, steps_per_epoch(rows, math.prod(shape)))
    return place(permutation(seed, epoch, rows), within, shape)


def place(order: Integers, within: int, shape: Shape) -> Integers:
    """Step `within` of the epoch that reads its rows in `order`.

    Rows are dealt to the lanes one by one, as cards are: a short step leaves the ends of all lanes empty (their rows
    differ by one at most), not whole lanes.
    """
    size = math.prod(shape)
    rows = order[within * size : (within + 1) * size]
    padded = np.full(size, MISSING, np.int64)
    padded[: len(rows)] = rows
    return np.ascontiguousarray(padded.reshape(-1, shape[0]).T).reshape(shape)


def steps_per_epoch(rows: int, rows_per_step: int) -> int:
    return -(-rows // rows_per_step)


def steps_for(
    steps: int | None, tokens: int | None, epochs: int | None, *, rows: int, rows_per_step: int, context: int
) -> int:
    """The length of a run, of which the recipe gives one of steps, tokens (row positions) and epochs.

    `tokens` are rounded up to whole rows, then to whole steps; a short step counts the rows it has.
    """
    if steps is not None:
        return steps
    if epochs is not None:
        return epochs * steps_per_epoch(rows, rows_per_step)
    if tokens is None:
        raise ValueError("one of steps, tokens and epochs is needed")
    whole, rest = divmod(-(-tokens // context), rows)
    return whole * steps_per_epoch(rows, rows_per_step) + steps_per_epoch(rest, rows_per_step)


def check_rows(rows: int, rows_per_step: int, context: int) -> None:
    """Raises DataError where the corpus is shorter than one step."""
    if rows < rows_per_step:
        raise DataError(
            f"the corpus has {rows} rows of {context} tokens, one step takes {rows_per_step}; "
            f"use a larger corpus, a smaller batch or fewer lanes"
        )


def batches(rows: int, micro_batch: int) -> int:
    """The number of micro-batches that hold `rows` in their own order, as in evaluation."""
    return -(-rows // micro_batch)


def rows_of_batch(batch: int, rows: int, micro_batch: int) -> Integers:
    """int64[micro_batch]: the rows of micro-batch `batch` in their own order; MISSING after the last."""
    places = np.arange(batch * micro_batch, (batch + 1) * micro_batch, dtype=np.int64)
    return np.where(places < rows, places, MISSING)


def _finish(state: int) -> int:
    """SplitMix64's output of one state: a bijection of 64-bit words."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & WORD
    state = (state ^ state >> 27) * 0x94D049BB133111EB & WORD
    return state ^ state >> 31


def _stream(seed: int, n: int) -> NDArray[np.uint64]:
    """The first n outputs of SplitMix64 with this seed. They are distinct. Products wrap at 64 bits."""
    state = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return state ^ state >> np.uint64(31)
