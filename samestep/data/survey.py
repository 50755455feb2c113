"""What the samples of a source are like: looked at chunk by chunk in worker processes, then added up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from samestep.data import encode, secrets
from samestep.data.formats import Sample
from samestep.data.samples import plain, read_rows
from samestep.data.source import Chunk, Invalid, is_held_out
from samestep.data.tokenize import Job, line, ready

Integers = NDArray[np.int64]

PLACES = 3  # of a kind of finding that are named
SENTENCES = 20  # on invalid samples


@dataclass(frozen=True)
class Found:
    """How many there are, and where the first ones are."""

    count: int = 0
    places: tuple[str, ...] = ()

    def plus(self, other: "Found", most: int = PLACES) -> "Found":
        return Found(self.count + other.count, (*self.places, *other.places)[:most])


@dataclass(frozen=True, eq=False)
class Seen:
    """Samples and their sequences, a preference having two.

    digests: uint64[samples], of their content. held_out: bool[samples]. places: int64[samples, 2], index into `files`
    and line. sizes: int64[sequences], tokens. targets, kept: int64[sequences], trained tokens after the first, in all
    and within the positions that truncation leaves. empty: texts without a character, which are no samples.
    """

    files: tuple[str, ...]
    digests: NDArray[np.uint64]
    held_out: NDArray[np.bool_]
    places: Integers
    sizes: Integers
    targets: Integers
    kept: Integers
    empty: int
    invalid: Found
    secrets: dict[str, Found]

    def place(self, sample: int) -> str:
        file, line = self.places[sample]
        return f"{self.files[file]}:{line}" if line else self.files[file]


class Surveyor:
    """Chunks to what is seen in them: what one process does."""

    def __init__(self, job: Job, positions: int) -> None:
        """positions: that a truncated sequence keeps."""
        self._job, self._encoder, self._positions = job, job.encoder(), positions

    def __call__(self, portion: list[Chunk]) -> list[Seen]:
        return [look(chunk, self._job, self._encoder, self._positions) for chunk in portion]


@dataclass
class _Notes:
    """On one chunk, while it is read."""

    digests: list[int] = field(default_factory=list)
    held_out: list[bool] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    sequences: list[tuple[int, int, int]] = field(default_factory=list)  # size, targets, kept
    invalid: Found = Found()
    secrets: dict[str, Found] = field(default_factory=dict)


def look(chunk: Chunk, job: Job, encoder: encode.Encoder, positions: int) -> Seen:
    """What there is to see in one chunk."""
    rows = list(read_rows(chunk, job.data))
    samples = [(row, sample) for row, sample in rows if isinstance(sample, Invalid) or not sample.empty]
    notes = _Notes()
    for found in ready(samples, job, encoder):
        if isinstance(found, Invalid):
            notes.invalid = notes.invalid.plus(Found(1, (found.message,)), SENTENCES)
            continue
        notes.digests.append(digest(found.sample))
        notes.held_out.append(is_held_out(found.row.name, job.data.held_out))
        notes.lines.append(line(found.row.name, chunk.name))
        notes.sequences += [counted(sequence, positions) for sequence in found.sequences]
        for kind in secrets.kinds(plain(found.sample)):
            notes.secrets[kind] = notes.secrets.get(kind, Found()).plus(Found(1, (found.row.name,)))
    return _seen(chunk.name, len(rows) - len(samples), notes)


def _seen(name: str, empty: int, notes: _Notes) -> Seen:
    sizes, targets, kept = np.array(notes.sequences, np.int64).reshape(-1, 3).T
    lines = np.array(notes.lines, np.int64)
    return Seen(
        (name,),
        np.array(notes.digests, np.uint64),
        np.array(notes.held_out, np.bool_),
        np.stack([np.zeros_like(lines), lines], 1),
        *(sizes, targets, kept),
        *(empty, notes.invalid, notes.secrets),
    )


def digest(sample: Sample) -> int:
    """64 bits of the sample's content; its place does not count."""
    return int(xxh3_64_intdigest(repr((sample.format, sample.prompt, sample.answers)).encode()))


def counted(sequence: encode.Sequence, positions: int) -> tuple[int, int, int]:
    """A sequence's tokens, its trained ones after the first, and those that are left of these in `positions`."""
    size = len(sequence.ids)
    if sequence.trained is None:
        return size, size - 1, min(size - 1, positions)
    return size, sum(sequence.trained[1:]), sum(sequence.trained[1 : positions + 1])


def together(seen: Sequence[Seen]) -> Seen:
    """What was seen in all chunks, in their order."""
    files, index = _files(seen)
    of_file = np.repeat(index, [len(one.digests) for one in seen])
    kinds = {kind for one in seen for kind in one.secrets}
    return Seen(
        files,
        np.concatenate([one.digests for one in seen]),
        np.concatenate([one.held_out for one in seen]),
        np.stack([of_file, np.concatenate([one.places[:, 1] for one in seen])], 1),
        np.concatenate([one.sizes for one in seen]),
        np.concatenate([one.targets for one in seen]),
        np.concatenate([one.kept for one in seen]),
        sum(one.empty for one in seen),
        _sum((one.invalid for one in seen), SENTENCES),
        {kind: _sum(one.secrets.get(kind, Found()) for one in seen) for kind in sorted(kinds)},
    )


def _files(seen: Sequence[Seen]) -> tuple[tuple[str, ...], list[int]]:
    """The different files, and for each chunk which one it is of. The chunks of a file follow each other."""
    files: list[str] = []
    index = []
    for one in seen:
        if files[-1:] != [one.files[0]]:
            files.append(one.files[0])
        index.append(len(files) - 1)
    return tuple(files), index


def _sum(found: Iterable[Found], most: int = PLACES) -> Found:
    return reduce(lambda a, b: a.plus(b, most), found, Found())


def duplicates(seen: Seen) -> Found:
    """The samples whose content an earlier sample of the source has already."""
    _, first, inverse = np.unique(seen.digests, return_index=True, return_inverse=True)
    original = first[inverse]
    again = np.flatnonzero(original != np.arange(len(original)))
    places = tuple(f"{seen.place(i)} is {seen.place(original[i])}" for i in again[:PLACES])
    return Found(len(again), places)


def overlap(seen: Seen, training: NDArray[np.uint64]) -> Found:
    """The held-out samples whose content is among `training`, the digests of training samples."""
    both = np.flatnonzero(seen.held_out & np.isin(seen.digests, training))
    return Found(len(both), tuple(seen.place(i) for i in both[:PLACES]))


def histogram(sizes: Integers) -> dict[int, int]:
    """How many of `sizes` are at most each power of two and above the one before, from the first to the last used."""
    if not len(sizes):
        return {}
    exponents = np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)
    counts = np.bincount(exponents)
    return {1 << e: int(counts[e]) for e in range(int(exponents.min()), len(counts))}
