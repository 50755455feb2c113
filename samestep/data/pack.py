"""The packing plan: which tokens stand in which row. Pure; it reads where sequences end and which tokens are trained.

A row is made of pieces. A piece reads ids[start : start + length] and predicts ids[start + 1 : start + 1 + length].

`stream` cuts a corpus of documents, one after the other, into rows of one piece: attention goes across documents. The
first token of a document follows from nothing, so it is masked wherever it would be a target. Every other token is a
target in one row.

`apart` puts whole samples into rows, a piece a sequence, each with its own positions and attention. A sample of two
sequences, a pair, stays in one row.
"""

import bisect
import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Rows:
    """starts: int64[pieces], the index in the corpus of each piece's first input token.
    lengths: int64[pieces], its positions.
    ends: int64[rows], the index after each row's last piece.
    targets: int64[rows], the positions that are trained.
    sequences: int64[pieces], the sequence of the corpus that a piece is; None: rows of a stream.
    """

    starts: Integers
    lengths: Integers
    ends: Integers
    targets: Integers
    sequences: Integers | None = None

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def pieces(self) -> Integers:
        """int64[rows]: how many pieces each row has."""
        return np.diff(self.ends, prepend=0)


def stream(ends: Integers, context: int, packing: bool) -> Rows:
    """Cuts a corpus into rows of at most `context` positions.

    ends: int64[documents], the index after each document's eos, rising.
    packing: one stream is cut at multiples of `context`; otherwise every document starts a row of its own.
    """
    last = ends[-1:] if packing else ends
    first = np.zeros_like(last) if packing else ends - np.diff(ends, prepend=0)
    starts, lengths = _cut(first, last - 1, context)
    return Rows(starts, lengths, np.arange(1, len(starts) + 1), lengths - _document_starts(ends, starts, lengths))


@dataclass(frozen=True, eq=False)
class Fit:
    """Which samples of a corpus can stand in a row. All arrays are bool[samples].

    long: of more than `context` positions. empty: nothing of it is trained. kept: neither, after the policy for long
    ones. lengths: int64[sequences], the positions that each sequence has in a row.
    """

    long: Booleans
    empty: Booleans
    kept: Booleans
    lengths: Integers
    targets: Integers  # int64[sequences]


def fit(
    ends: Integers,
    trained: Booleans | None,
    context: int,
    *,
    together: int = 1,
    score: bool = False,
    too_long: Literal["fail", "skip", "truncate"] = "skip",
) -> Fit:
    """together: sequences a sample. trained: bool[tokens], None for all of them.

    A sequence of n tokens takes n - 1 positions, its last token being a target only; all n with `score`, where the
    last one is read for a score. A truncated sample loses the ends of its sequences: each keeps context / together.
    """
    sizes = np.diff(ends, prepend=0)
    lengths = sizes if score else sizes - 1
    long = lengths.reshape(-1, together).sum(1) > context
    if too_long == "truncate":
        lengths = np.where(np.repeat(long, together), np.minimum(lengths, context // together), lengths)
    targets = _trained(ends - sizes, np.minimum(lengths, sizes - 1), trained)
    empty = (targets.reshape(-1, together) == 0).any(1)
    kept = ~empty if too_long == "truncate" else ~(empty | long)
    return Fit(long, empty, kept, lengths, targets)


def apart(ends: Integers, found: Fit, context: int, *, together: int = 1, packing: bool = True) -> Rows:
    """The kept samples of `found` in rows of at most `context` positions; without `packing` each has its own."""
    samples = np.flatnonzero(found.kept)
    sequences = (samples[:, None] * together + np.arange(together)).reshape(-1)
    sizes = found.lengths[sequences].reshape(-1, together).sum(1)
    row_of = best_fit(sizes, context) if packing else np.arange(len(samples))
    order = np.argsort(row_of, kind="stable")
    ends_of_rows = np.cumsum(np.bincount(row_of)) * together if len(samples) else np.zeros(0, np.int64)
    sequences = sequences.reshape(-1, together)[order].reshape(-1)
    targets = np.diff(np.concatenate([[0], np.cumsum(found.targets[sequences])])[np.concatenate([[0], ends_of_rows])])
    starts = (ends - np.diff(ends, prepend=0))[sequences]
    return Rows(starts, found.lengths[sequences], ends_of_rows, targets, sequences)


def best_fit(lengths: Integers, context: int) -> Integers:
    """int64[n]: the row of each sample, of `lengths` 1 to `context`, by best-fit decreasing.

    Each sample, longest first, goes into the fullest row that still holds it, else into a new one (Johnson, "Fast
    algorithms for bin packing", 1974; for language models Ding et al., arXiv 2404.10830). Samples of one length are
    placed together, so the time follows the number of different lengths.
    """
    row_of = np.empty(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    cuts = np.flatnonzero(np.diff(lengths[order])) + 1
    room = _Room(context)
    for samples in np.split(order, cuts) if len(order) else ():
        room.place(samples, int(lengths[samples[0]]), row_of)
    return row_of


class _Room:
    """Rows by the positions that they have left."""

    def __init__(self, context: int) -> None:
        self._context, self._rows = context, 0
        self._spaces: list[int] = []  # rising
        self._with: dict[int, Integers] = {}

    def place(self, samples: Integers, length: int, row_of: Integers) -> None:
        while len(samples):
            space, rows = self._take(length, len(samples))
            each = space // length  # a row that was fullest with room for one stays so
            rows_used = np.repeat(rows, each)[: len(samples)]
            row_of[samples[: len(rows_used)]] = rows_used
            samples = samples[len(rows_used) :]
            full, rest = divmod(len(rows_used), each)
            self._give(space - each * length, rows[:full])
            self._give(space - rest * length, rows[full:])

    def _take(self, length: int, samples: int) -> tuple[int, Integers]:
        """The fullest rows with room for `length`, no more than are needed, and their space."""
        at = bisect.bisect_left(self._spaces, length)
        if at == len(self._spaces):
            new = -(-samples // (self._context // length))
            self._rows += new
            return self._context, np.arange(self._rows - new, self._rows)
        space = self._spaces[at]
        needed = -(-samples // (space // length))
        rows, left = np.split(self._with.pop(space), [needed])
        del self._spaces[at]
        self._give(space, left)
        return space, rows

    def _give(self, space: int, rows: Integers) -> None:
        if not space or not len(rows):
            return
        if space not in self._with:
            bisect.insort(self._spaces, space)
        self._with[space] = np.concatenate([self._with.get(space, rows[:0]), rows])


def masked(ends: Integers, start: int, length: int) -> Integers:
    """The positions of a stream's row whose target is the first token of a document. int64, each below `length`."""
    low, high = np.searchsorted(ends[:-1], (start + 1, start + 1 + length))
    return np.asarray(ends[low:high]) - (start + 1)


def digest(rows: Rows) -> str:
    """SHA-256 of the plan, the same on every machine."""
    sha = hashlib.sha256(len(rows).to_bytes(8, "little"))
    for column in (rows.starts, rows.lengths, rows.targets, *(() if rows.sequences is None else (rows.ends,))):
        sha.update(column.astype("<i8").tobytes())
    return sha.hexdigest()


def _cut(first: Integers, last: Integers, context: int) -> tuple[Integers, Integers]:
    """Cuts each span [first, last) from its start; the last piece of a span may be short."""
    pieces = -(-(last - first) // context)
    piece = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(first, pieces) + piece * context
    return starts, np.minimum(context, np.repeat(last, pieces) - starts)


def _document_starts(ends: Integers, starts: Integers, lengths: Integers) -> Integers:
    """How many of each row's targets are the first token of a document."""
    return np.searchsorted(ends[:-1], starts + 1 + lengths) - np.searchsorted(ends[:-1], starts + 1)


def _trained(starts: Integers, targets: Integers, trained: Booleans | None) -> Integers:
    """How many of the `targets` tokens after the first of each sequence are trained."""
    if trained is None or not len(starts):
        return np.maximum(targets, 0)
    borders = np.stack([starts + 1, starts + 1 + targets], 1).reshape(-1)
    # An empty sequence at the end has borders behind all tokens, hence two more.
    sums = np.add.reduceat(np.append(trained, [False, False]), borders, dtype=np.int64)[::2]
    return np.where(targets > 0, sums, 0)
