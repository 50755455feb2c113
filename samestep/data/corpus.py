"""A prepared corpus: one folder of arrays, written piece by piece and mapped by every replica.

<folder>/   {train,held_out}.{ids,ends,places}.npy, .trained.npy where not all is trained, tokenizer.json, meta.json
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from samestep.errors import DataError

Ids = NDArray[np.uint16] | NDArray[np.uint32]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tokens:
    """All sequences one after the other. A preference is two of them: the chosen one, then the rejected one.

    ids: uint16[n], or uint32[n] for a vocabulary over 65,536.
    ends: int64[sequences], the index in `ids` after each sequence.
    trained: bool[n], the tokens that a loss may count; None: all of them.
    places: int64[sequences, 2], where each comes from: index into `Corpus.files`, line or row from 1 (0: whole file).
    Each is mapped, read only.
    """

    ids: Ids
    ends: Integers
    trained: NDArray[np.bool_] | None = None
    places: Integers = field(default_factory=lambda: np.zeros((0, 2), np.int64))


@dataclass(frozen=True, eq=False)
class Corpus:
    folder: Path
    train: Tokens
    held_out: Tokens
    tokenizer_file: Path
    vocabulary: int  # every id is below it
    eos: int
    held_out_bytes: int  # UTF-8 bytes of the held-out texts; 0 for samples that are no plain text
    held_out_zlib: int  # bytes that zlib, level 9, needs for these texts as one stream
    format: str  # of the samples, one of formats.FORMATS
    files: list[str]
    skipped: list[str]  # a sentence for each sample left out as invalid, the first ones
    skipped_count: int

    def place(self, place: Integers) -> str:
        """`file:line` of one of `Tokens.places`; the file alone where it is one sample."""
        file, line = place
        return f"{self.files[file]}:{line}" if line else self.files[file]


@dataclass(frozen=True, eq=False)
class Block:
    """Sequences one after the other, before it is known where they will stand.

    ids: uint16 or uint32[n]. lengths: int64[sequences]. trained: bool[n]. lines: int64[sequences]. samples: how many.
    """

    ids: Ids
    lengths: Integers
    trained: NDArray[np.bool_]
    lines: Integers
    samples: int


def load(folder: Path) -> Corpus:
    """Opens a prepared folder, `Corpus.folder`. Raises DataError where it is not whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        return Corpus(folder, _mapped(folder, "train"), _mapped(folder, "held_out"), folder / "tokenizer.json", **meta)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"{folder} is no whole prepared corpus ({error}); delete it and start again") from error


def _mapped(folder: Path, name: str) -> Tokens:
    def array(part: str) -> Any:
        return np.load(folder / f"{name}.{part}.npy", mmap_mode="r", allow_pickle=False)

    masked = (folder / f"{name}.trained.npy").exists()
    return Tokens(array("ids"), array("ends"), array("trained") if masked else None, array("places"))


class Column:
    """An .npy file that grows along its first axis; the end of the `with` block makes it whole."""

    def __init__(self, path: Path, dtype: DTypeLike, inner: tuple[int, ...] = ()) -> None:
        self._file, self._dtype, self._inner, self._length = path.open("wb"), np.dtype(dtype), inner, 0
        self._write_header()

    def __enter__(self) -> "Column":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def _write_header(self) -> None:
        """numpy leaves room in it for any length of the first axis, so it can be written again in place."""
        self._file.seek(0)
        shape = (self._length, *self._inner)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


class Part:
    """The training or the held-out sequences while they are written."""

    def __init__(self, folder: Path, name: str, dtype: DTypeLike, masked: bool, files: ExitStack) -> None:
        def column(part: str, dtype: DTypeLike, inner: tuple[int, ...] = ()) -> Column:
            return files.enter_context(Column(folder / f"{name}.{part}.npy", dtype, inner))

        self._ids, self._ends, self._places = column("ids", dtype), column("ends", "<i8"), column("places", "<i8", (2,))
        self._trained = column("trained", "?") if masked else None
        self._end = self.samples = 0

    def append(self, block: Block, file: int) -> None:
        """file: index into `Corpus.files`."""
        ends = self._end + np.cumsum(block.lengths)
        self._ids.append(block.ids)
        self._ends.append(ends)
        self._places.append(np.stack([np.full_like(block.lines, file), block.lines], axis=1))
        if self._trained is not None:
            self._trained.append(block.trained)
        self._end += len(block.ids)
        self.samples += block.samples


def write_meta(folder: Path, tokenizer: str, **meta: int | str | Sequence[str]) -> None:
    """tokenizer: the text of the tokenizer.json. meta: the fields of Corpus from `vocabulary` on."""
    (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
    (folder / "meta.json").write_text(json.dumps(meta), "utf-8")
