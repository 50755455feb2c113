"""The log-probabilities of all sequences under the model as it is before the first step: computed once and kept.

Replicas share the work; each micro-batch is the same at any number of them. What is kept is named by all that the
numbers follow from, so that another run with the same model and data begins at once.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samestep.data.cache import published
from samestep.data.feed import Fixed, Reader
from samestep.errors import ClusterError
from samestep.model.task import Task
from samestep.recipe.schema import Dpo
from samestep.recover import digest
from samestep.replica import device, kernels
from samestep.replica.job import Job
from samestep.replica.setup import fixed_of
from samestep.wire.collective import Collective, Operation, Tag, all_gather

FORMAT = 1  # raise it when the numbers would be others
PARTS = ("train", "held_out")


def attach(job: Job, task: Task, wire: Collective, readers: dict[str, Reader]) -> None:
    """Give the readers of the training and the held-out rows their references, where the objective needs them."""
    if _needed(job):
        _give(readers, _references(job, task, wire))


def attach_kept(job: Job, task: Task, readers: dict[str, Reader]) -> None:
    """The same for a replica that comes later: what the others have computed is kept on the disk. ClusterError if not.

    To be called while the model is as it is before the first step.
    """
    if _needed(job):
        folder = _folder(job, task)
        found = _read(folder)
        if found is None:
            raise ClusterError(f"{folder} is not there, where the other replicas keep the reference; share the cache")
        _give(readers, found)


def _needed(job: Job) -> bool:
    objective = job.recipe.objective
    return isinstance(objective, Dpo) and objective.reference == "start"


def _give(readers: dict[str, Reader], found: dict[str, Tensor]) -> None:
    for part, reader in readers.items():
        reader.reference = found[part]


def _references(job: Job, task: Task, wire: Collective) -> dict[str, Tensor]:
    """float32[sequences] by part, for all sequences that stand in its rows; 0 for the others."""
    folder = _folder(job, task)
    found = _read(folder)
    if not _everybody(wire, found is not None):
        found = {part: _computed(task, fixed_of(job, part), wire, number) for number, part in enumerate(PARTS)}
        if wire.rank == 0 and not folder.is_dir():
            _write(folder, found)
    assert found is not None
    return found


@torch.no_grad()
def _computed(task: Task, rows: Fixed, wire: Collective, number: int) -> Tensor:
    assert task.log_probabilities is not None
    training = task.module.training
    task.module.eval()
    mine = torch.zeros(rows.reader.sequences)
    for index in range(wire.rank, len(rows), wire.size):
        batch = rows.micro_batch(index)
        assert batch.pieces is not None
        mine[batch.pieces[:, 3]] = task.log_probabilities(batch).cpu()
    task.module.train(training)
    return _summed(wire, mine, 1 + number)


def _everybody(wire: Collective, have: bool) -> bool:
    return bool(_summed(wire, torch.tensor([float(have)]), 0) == wire.size)


def _summed(wire: Collective, mine: Tensor, bucket: int) -> Tensor:
    """Exact where at most one replica has something else than zero, or all have small whole numbers."""
    everyone = [mine if r == wire.rank else torch.empty_like(mine) for r in range(wire.size)]
    all_gather(wire, Tag(0, Operation.REFERENCE, bucket), mine, everyone).wait()
    return torch.stack(everyone).sum(0)


def _folder(job: Job, task: Task) -> Path:
    return job.corpora[0].parent / f"reference-{_key(job, task)}"


def _key(job: Job, task: Task) -> str:
    data, recipe = job.recipe.data, job.recipe
    settings = [
        FORMAT,
        [folder.name for folder in job.corpora],
        [data.context, data.packing, data.too_long, recipe.batch.micro_batch],
        [recipe.model.dtype, recipe.compute.compile, recipe.model.lora is None],
        digest.of_tensors(dict(task.module.named_parameters())),
        kernels.describe(device.of(task.module)),
    ]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _read(folder: Path) -> dict[str, Tensor] | None:
    if not folder.is_dir():
        return None
    return {part: torch.from_numpy(np.load(folder / f"{part}.npy", allow_pickle=False)) for part in PARTS}


def _write(folder: Path, found: dict[str, Tensor]) -> None:
    with published(folder) as fresh:
        for part, values in found.items():
            np.save(fresh / f"{part}.npy", values.numpy(), allow_pickle=False)
