"""Rows to tensors of one fixed shape. The only file of this folder that imports torch."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from samestep.data.order import (
    MISSING,
    Integers,
    Shape,
    batches,
    check_rows,
    permutation,
    place,
    rows_of_batch,
    steps_per_epoch,
)
from samestep.data.pack import Rows, masked
from samestep.data.tokenize import Tokens

IGNORED = -100  # a target that no loss counts; the default of torch's cross_entropy


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """tokens: int64[micro_batch, context], eos where padded.
    targets: int64[micro_batch, context], the next token; IGNORED where masked or padded.
    """

    tokens: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, eq=False)
class StepPlan:
    """rows: int64[lanes, accumulate, micro_batch], MISSING where there is none.
    targets: the target tokens of the whole step.
    epoch, places: the part of that epoch's order which the step reads, as counted numbers from 0.
    """

    rows: Integers
    targets: int
    epoch: int
    places: range


class Feed:
    """The training rows, step by step. It keeps the order of the last epoch asked for and nothing else."""

    def __init__(self, tokens: Tokens, rows: Rows, *, context: int, seed: int, shape: Shape, eos: int) -> None:
        """shape: lanes, micro-batches a lane, rows a micro-batch. Raises DataError for less than one step of rows."""
        check_rows(len(rows), math.prod(shape), context)
        self._tokens, self._rows = tokens, rows
        self._context, self._seed, self._shape, self._eos = context, seed, shape, eos
        self._epoch = (0, permutation(seed, 0, len(rows)))

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self._rows), math.prod(self._shape))

    def step(self, step: int) -> StepPlan:
        """Step `step`, counted from 0 over all epochs. Reads no token."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, permutation(self._seed, epoch, len(self._rows)))
        rows = place(self._epoch[1], within, self._shape)
        size = math.prod(self._shape)
        places = range(within * size, min(len(self._rows), (within + 1) * size))
        return StepPlan(rows, int(self._rows.targets[rows[rows != MISSING]].sum()), epoch, places)

    def micro_batch(self, plan: StepPlan, lane: int, micro: int) -> MicroBatch:
        return read(self._tokens, self._rows, plan.rows[lane, micro], self._context, self._eos)


class Fixed:
    """The rows in their own order, for evaluation: `len(fixed)` micro-batches, the last one padded with empty rows."""

    def __init__(self, tokens: Tokens, rows: Rows, *, context: int, micro_batch: int, eos: int) -> None:
        self._tokens, self._rows = tokens, rows
        self._context, self._micro_batch, self._eos = context, micro_batch, eos

    def __len__(self) -> int:
        return batches(len(self._rows), self._micro_batch)

    def micro_batch(self, batch: int) -> MicroBatch:
        which = rows_of_batch(batch, len(self._rows), self._micro_batch)
        return read(self._tokens, self._rows, which, self._context, self._eos)


def read(tokens: Tokens, rows: Rows, which: Integers, context: int, eos: int) -> MicroBatch:
    """The rows `which`, int64[micro_batch]. A MISSING row is padding throughout."""
    inputs = np.full((len(which), context), eos, np.int64)
    targets = np.full((len(which), context), IGNORED, np.int64)
    for i, row in enumerate(which):
        if row != MISSING:
            start, length = int(rows.starts[row]), int(rows.lengths[row])
            inputs[i, :length] = tokens.ids[start : start + length]
            targets[i, :length] = tokens.ids[start + 1 : start + 1 + length]
            targets[i, masked(tokens.ends, start, length)] = IGNORED
    return MicroBatch(torch.from_numpy(inputs), torch.from_numpy(targets))
