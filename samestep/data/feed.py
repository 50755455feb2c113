"""Rows to tensors of one fixed shape. The only file of this folder that imports torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from samestep.data.corpus import Tokens
from samestep.data.order import (
    MISSING,
    Integers,
    Shape,
    batches,
    check_rows,
    drawn,
    place,
    rows_of_batch,
    rows_of_epoch,
    steps_per_epoch,
)
from samestep.data.pack import Rows, masked

IGNORED = -100  # a target that no loss counts; the default of torch's cross_entropy


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """tokens: int64[micro_batch, context], eos where padded.
    targets: int64[micro_batch, context], the next token; IGNORED where masked or padded.
    positions: int64[micro_batch, context], counted from 0 in each piece, 0 where padded; None: a row is one piece.
    pieces: int64[pieces, 4], of each its row, its first position, the one after its last and its sequence, counted
        over all sources; in the order of the rows. None where positions is.
    reference: float32[pieces], the log-probability of each under the reference model, where the reader has it.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor | None = None
    pieces: torch.Tensor | None = None
    reference: torch.Tensor | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device. A GPU fetches it from pinned memory by itself, when it gets there."""
        if self.tokens.device.type == device.type:
            return self
        there = {field.name: getattr(self, field.name) for field in fields(self)}
        return MicroBatch(**{name: _moved(tensor, device) for name, tensor in there.items() if tensor is not None})


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    pinned = tensor.pin_memory() if tensor.device.type == "cpu" and device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Source:
    """One source's tokens and their rows."""

    tokens: Tokens
    rows: Rows


class Reader:
    """The rows of several sources of one kind, counted through, as micro-batches.

    reference: float32[sequences], what goes along with each sequence; None: nothing.
    """

    def __init__(self, sources: Sequence[Source], *, context: int, eos: int) -> None:
        self._sources, self._context, self._eos = sources, context, eos
        self._rows = np.cumsum([0, *(len(source.rows) for source in sources)])
        self._sequences = np.cumsum([0, *(len(source.tokens.ends) for source in sources)])
        self.apart = any(source.rows.sequences is not None for source in sources)
        self.targets = np.concatenate([source.rows.targets for source in sources])
        self.pieces = np.concatenate([source.rows.pieces for source in sources])
        self.reference: torch.Tensor | None = None

    @property
    def sequences(self) -> int:
        """Of all sources together."""
        return int(self._sequences[-1])

    def read(self, which: Integers) -> MicroBatch:
        """The rows `which`, int64[micro_batch]. A MISSING row is padding throughout."""
        inputs, targets, positions = (
            np.full((len(which), self._context), value, np.int64) for value in (self._eos, IGNORED, 0)
        )
        pieces: list[tuple[int, int, int, int]] = []
        for at, row in enumerate(which):
            if row != MISSING:
                pieces += self._write(at, int(row), inputs[at], targets[at], positions[at])
        tokens, goals = torch.from_numpy(inputs), torch.from_numpy(targets)
        if not self.apart:
            return MicroBatch(tokens, goals)
        where = torch.tensor(pieces, dtype=torch.int64).reshape(-1, 4)
        reference = None if self.reference is None else self.reference[where[:, 3]]
        return MicroBatch(tokens, goals, torch.from_numpy(positions), where, reference)

    def origin(self, row: int) -> tuple[int, list[int]]:
        """The source of a row, and which of its sequences stand in it, wholly or in part."""
        number, row = self._find(row)
        tokens, rows = self._sources[number].tokens, self._sources[number].rows
        pieces = slice(int(rows.ends[row - 1]) if row else 0, int(rows.ends[row]))
        if rows.sequences is not None:
            return number, rows.sequences[pieces].tolist()
        start = int(rows.starts[pieces][0])
        first, last = np.searchsorted(tokens.ends, (start, start + int(rows.lengths[pieces][0]) - 1), side="right")
        return number, list(range(int(first), int(last) + 1))

    def _find(self, row: int) -> tuple[int, int]:
        """The source of a row, and its number there."""
        number = int(np.searchsorted(self._rows, row, side="right")) - 1
        return number, row - int(self._rows[number])

    def _write(
        self, at: int, row: int, inputs: Integers, targets: Integers, positions: Integers
    ) -> list[tuple[int, int, int, int]]:
        """Fill one row; the pieces in it."""
        number, row = self._find(row)
        tokens, rows = self._sources[number].tokens, self._sources[number].rows
        pieces, place = [], 0
        for piece in range(int(rows.ends[row - 1]) if row else 0, int(rows.ends[row])):
            start, length = int(rows.starts[piece]), int(rows.lengths[piece])
            here = slice(place, place + length)
            inputs[here] = tokens.ids[start : start + length]
            positions[here] = np.arange(length)
            goals = _stream_targets if rows.sequences is None else _sequence_targets
            targets[here] = goals(tokens, start, length, rows, piece)
            sequence = -1 if rows.sequences is None else int(rows.sequences[piece] + self._sequences[number])
            pieces.append((at, place, place + length, sequence))
            place += length
        return pieces


def _stream_targets(tokens: Tokens, start: int, length: int, _rows: Rows, _piece: int) -> NDArray[np.int64]:
    targets = tokens.ids[start + 1 : start + 1 + length].astype(np.int64)
    targets[masked(tokens.ends, start, length)] = IGNORED
    return targets


def _sequence_targets(tokens: Tokens, start: int, length: int, rows: Rows, piece: int) -> NDArray[np.int64]:
    """The last position has no target where all tokens of the sequence are read."""
    assert rows.sequences is not None
    targets = np.full(length, IGNORED, np.int64)
    there = min(length, int(tokens.ends[rows.sequences[piece]]) - start - 1)
    targets[:there] = tokens.ids[start + 1 : start + 1 + there]
    if tokens.trained is not None:
        targets[:there][~tokens.trained[start + 1 : start + 1 + there]] = IGNORED
    return targets


@dataclass(frozen=True, eq=False)
class StepPlan:
    """rows: int64[lanes, accumulate, micro_batch], MISSING where there is none.
    targets: the target tokens of the whole step.
    pieces: the pieces of the whole step.
    epoch, places: the part of that epoch's order which the step reads, as counted numbers from 0.
    """

    rows: Integers
    targets: int
    pieces: int
    epoch: int
    places: range


class Feed:
    """The training rows, step by step. It keeps the order of the last epoch asked for and nothing else."""

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], *, context: int, seed: int, shape: Shape, eos: int
    ) -> None:
        """weights: how often an epoch reads each source. shape: lanes, micro-batches a lane, rows a micro-batch.

        Raises DataError for less than one step of rows.
        """
        self.reader = Reader(sources, context=context, eos=eos)
        self._rows, self._weights = [len(source.rows) for source in sources], weights
        self._seed, self._shape = seed, shape
        self._length = sum(rows_of_epoch(w, n) for w, n in zip(weights, self._rows, strict=True))
        check_rows(self._length, math.prod(shape), context)
        self._epoch = (0, drawn(seed, 0, self._rows, weights))

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self._length, math.prod(self._shape))

    def step(self, step: int) -> StepPlan:
        """Step `step`, counted from 0 over all epochs. Reads no token."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, drawn(self._seed, epoch, self._rows, self._weights))
        rows = place(self._epoch[1], within, self._shape)
        size = math.prod(self._shape)
        places = range(within * size, min(self._length, (within + 1) * size))
        there = rows[rows != MISSING]
        targets, pieces = (int(count[there].sum()) for count in (self.reader.targets, self.reader.pieces))
        return StepPlan(rows, targets, pieces, epoch, places)

    def micro_batch(self, plan: StepPlan, lane: int, micro: int) -> MicroBatch:
        return self.reader.read(plan.rows[lane, micro])


class Fixed:
    """The rows in their own order, for evaluation: `len(fixed)` micro-batches, the last one padded with empty rows."""

    def __init__(self, sources: Sequence[Source], *, context: int, micro_batch: int, eos: int) -> None:
        self.reader = Reader(sources, context=context, eos=eos)
        self._rows, self._micro_batch = sum(len(source.rows) for source in sources), micro_batch

    def __len__(self) -> int:
        return batches(self._rows, self._micro_batch)

    def micro_batch(self, batch: int) -> MicroBatch:
        return self.reader.read(rows_of_batch(batch, self._rows, self._micro_batch))
