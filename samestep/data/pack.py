"""The packing plan: which tokens stand in which row. Pure; it reads where documents end, never a token.

Row i reads ids[start : start + length] and predicts ids[start + 1 : start + 1 + length]. The first token of a document
follows from nothing, so it is masked wherever it would be a target. Every other token is a target in one row.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """starts: int64[n], the index in the corpus of each row's first input token.
    lengths: int64[n], the positions a row really has, 1 to context; the rest is padding.
    targets: int64[n], the positions that are not masked.
    """

    starts: Integers
    lengths: Integers
    targets: Integers

    def __len__(self) -> int:
        return len(self.starts)


def plan(ends: Integers, context: int, packing: bool) -> Rows:
    """Cuts a corpus into rows of at most `context` positions.

    ends: int64[documents], the index after each document's eos, rising.
    packing: one stream is cut at multiples of `context`; otherwise every document starts a row of its own.
    """
    last = ends[-1:] if packing else ends
    first = np.zeros_like(last) if packing else ends - np.diff(ends, prepend=0)
    starts, lengths = _cut(first, last - 1, context)
    return Rows(starts, lengths, lengths - _document_starts(ends, starts, lengths))


def masked(ends: Integers, start: int, length: int) -> Integers:
    """The positions of a row whose target is the first token of a document. int64, each below `length`."""
    low, high = np.searchsorted(ends[:-1], (start + 1, start + 1 + length))
    return np.asarray(ends[low:high]) - (start + 1)


def digest(rows: Rows) -> str:
    """SHA-256 of the plan, the same on every machine."""
    sha = hashlib.sha256(len(rows).to_bytes(8, "little"))
    for column in (rows.starts, rows.lengths, rows.targets):
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
