"""A source to token ids, once: into a folder named by all that goes in, from which every replica maps them.

The parent reads and writes; worker processes parse, judge and encode. Nothing grows with the source but the files.
"""

import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from samestep.data.cache import key, published
from samestep.data.corpus import Block, Corpus, Ids, Part, load, write_meta
from samestep.data.encode import Encoder, Sequence
from samestep.data.formats import Sample
from samestep.data.pool import ordered
from samestep.data.samples import (
    Found,
    check_taken,
    first_sample,
    groups,
    plain,
    read_samples,
    refusal,
    same_format,
)
from samestep.data.source import Chunk, Invalid, Row, chunks, fingerprint, position
from samestep.data.vocabulary import Vocabulary, parse
from samestep.errors import DataError
from samestep.recipe.schema import Data

FORMAT = 2  # raise it when other files or other tokens are written: old caches are then left alone
SENTENCES = 1_000  # of samples that are left out; the others are only counted

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What a worker needs to encode chunks of one source. first: the source's first sample."""

    data: Data
    vocabulary: Vocabulary
    train_on: str
    first: Sample
    typecode: str  # of array.array: H for ids of 16 bits, I for 32

    def encoder(self) -> Encoder:
        told = self.vocabulary
        return Encoder(told.text, told.template, told.eos, told.special, self.train_on, told.origin)


def prepare(
    source: str,
    data: Data,
    objective: str,
    train_on: str,
    vocabulary: Vocabulary,
    cache: Path,
    base: Path,
    say: Say,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Corpus:
    """The tokens of one `source`, read from the folder `base`; from `cache` where they are there already.

    objective: its kind. train_on: answers | all. workers: processes; default: one a core. progress: is told the bytes
    that are done; of compressed files, bytes of their content.

    Killed at any moment it leaves no folder that counts as whole; several jobs may prepare the same corpus at once.
    Raises DataError for a source, sample or tokenizer that cannot be used and a cache that cannot be written,
    ClusterError where a worker was killed.
    """
    told = (vocabulary.text, vocabulary.template, vocabulary.eos, vocabulary.special)
    settings = (data.held_out, data.invalid, data.text_field, data.format, train_on)
    versions = (version("tokenizers"), version("jinja2"))
    folder = cache / key(["corpus", FORMAT, *versions, fingerprint(source, data, base), *told, *settings])
    if not folder.is_dir():
        first = first_sample(source, data, base)
        check_taken(first.format, objective, source)
        size, eos = parse(vocabulary)
        job = Job(data, vocabulary, train_on, first, "H" if size <= 1 << 16 else "I")
        say(f"encoding {source}: {first.format}")
        with published(folder) as fresh:
            book = _write(fresh, source, job, base, workers or os.cpu_count() or 1, progress)
            write_meta(fresh, vocabulary.text, vocabulary=size, eos=eos, format=first.format, **book.meta())
    corpus = load(folder)
    check_taken(corpus.format, objective, source)
    return corpus


def _write(fresh: Path, source: str, job: Job, base: Path, workers: int, progress: Callable[[int], None]) -> "Book":
    portions = groups(chunks(source, job.data, base))
    with ExitStack() as files, closing(ordered(partial(Worker, job), portions, workers)) as results:
        book = Book(fresh, job, files)
        for result in results:
            for encoded in result:
                book.add(encoded)
                progress(book.done)
    book.check(source)
    return book


@dataclass(frozen=True, eq=False)
class Encoded:
    """One chunk: its sequences and what else the book keeps.

    text: of its held-out documents, UTF-8. first: the smallest `position` of its samples. invalid: the first sentences.
    """

    name: str
    size: int  # bytes of the chunk
    train: Block
    held_out: Block
    text: bytes
    first: float
    invalid: list[str]
    invalid_count: int


class Worker:
    """Chunks to ids: what one process does."""

    def __init__(self, job: Job) -> None:
        self._job, self._encoder = job, job.encoder()

    def __call__(self, portion: list[Chunk]) -> list[Encoded]:
        return [self._encode(chunk) for chunk in portion]

    def _encode(self, chunk: Chunk) -> Encoded:
        train, held_out = Pile(self._job.typecode), Pile(self._job.typecode)
        texts, invalid, first = [], [], 1.0
        for found in ready(read_samples(chunk, self._job.data), self._job, self._encoder):
            if isinstance(found, Invalid):
                invalid.append(found.message)
                if self._job.data.invalid == "fail":
                    break
                continue
            place = position(found.row.name)
            held = place < self._job.data.held_out
            first = min(first, place)
            (held_out if held else train).add(found.sequences, line(found.row.name, chunk.name))
            if held and found.sample.format == "text":
                texts.append(plain(found.sample))
        text = "".join(texts).encode()
        size, count = len(chunk.payload), len(invalid)
        return Encoded(chunk.name, size, train.block(), held_out.block(), text, first, invalid[:SENTENCES], count)


@dataclass(frozen=True, eq=False)
class Ready:
    """A sample as it is trained on."""

    row: Row
    sample: Sample
    sequences: tuple[Sequence, ...]


def ready(found: Iterable[Found], job: Job, encoder: Encoder) -> Iterator[Ready | Invalid]:
    """Samples in their order, encoded, or why one cannot be used."""
    for row, sample in found:
        judged = same_format(sample, job.first)
        if isinstance(judged, Invalid):
            yield judged
            continue
        sequences = encoder.encode([judged])[0]
        yield sequences if isinstance(sequences, Invalid) else Ready(row, judged, sequences)


def line(row: str, file: str) -> int:
    """The line or row, from 1, in the name of a row of `file`; 0 where the row is the whole file."""
    return int(row[len(file) + 1 :] or 0)


class Pile:
    """Sequences one on the other, in compact arrays."""

    def __init__(self, typecode: str) -> None:
        self._ids, self._trained = array(typecode), bytearray()
        self._lengths, self._lines = array("q"), array("q")
        self._samples = 0

    def add(self, sequences: tuple[Sequence, ...], line: int) -> None:
        self._samples += 1
        for sequence in sequences:
            count = len(sequence.ids)
            self._ids.extend(sequence.ids)
            self._trained.extend(b"\1" * count if sequence.trained is None else sequence.trained)
            self._lengths.append(count)
            self._lines.append(line)

    def block(self) -> Block:
        ids: Ids = np.frombuffer(self._ids, self._ids.typecode)
        lengths, lines = np.frombuffer(self._lengths, np.int64), np.frombuffer(self._lines, np.int64)
        return Block(ids, lengths, np.frombuffer(self._trained, np.bool_), lines, self._samples)


class Book:
    """The corpus while it is written, chunk by chunk in their order."""

    def __init__(self, folder: Path, job: Job, files: ExitStack) -> None:
        """files: closes what is opened here."""
        self._train, self._held_out = (
            Part(folder, name, job.typecode, job.first.format != "text", files) for name in ("train", "held_out")
        )
        self._data, self._files = job.data, list[str]()
        self._skipped, self._count = list[str](), 0
        self._zlib, self._bytes, self._zipped = zlib.compressobj(9), 0, 0
        self._first = 1.0
        self.done = 0  # bytes

    def add(self, encoded: Encoded) -> None:
        """Raises DataError for an invalid sample under `data.invalid: fail`."""
        if encoded.invalid and self._data.invalid == "fail":
            raise refusal(encoded.invalid[0])
        if self._files[-1:] != [encoded.name]:
            self._files.append(encoded.name)
        self._train.append(encoded.train, len(self._files) - 1)
        self._held_out.append(encoded.held_out, len(self._files) - 1)
        self._skipped += encoded.invalid[: SENTENCES - len(self._skipped)]
        self._count += encoded.invalid_count
        self._bytes += len(encoded.text)
        self._zipped += len(self._zlib.compress(encoded.text))
        self._first = min(self._first, encoded.first)
        self.done += encoded.size

    def check(self, source: str) -> None:
        """Raises DataError where `data.held_out` left the training or the held-out part without a sample."""
        taken, share = self._held_out.samples, self._data.held_out
        samples = self._train.samples + taken
        if not share or 0 < taken < samples:
            return
        enough = f"to {self._first + 0.001:.3f}, which takes one, or " if samples > 1 and not taken else ""
        raise DataError(
            f"data.held_out {share} takes {taken} of {samples} documents of {source} (chosen by their names), but "
            f"training and the held-out set need one each; set it {enough}to 0, or split the files into more"
        )

    def meta(self) -> dict[str, int | list[str]]:
        return {
            "held_out_bytes": self._bytes,
            "held_out_zlib": self._zipped + len(self._zlib.flush()),
            "files": self._files,
            "skipped": self._skipped,
            "skipped_count": self._count,
        }
