"""Held-out loss, computed by all replicas together and the same at any number of them."""

import math
from typing import NamedTuple

import torch

from samestep.data.feed import IGNORED, Fixed
from samestep.model.task import Task
from samestep.wire.collective import Collective, Operation, Tag, all_gather


class HeldOut(NamedTuple):
    """total: the summed loss over `terms`, which are target tokens or pairs. right: pairs ranked right, if pairs."""

    total: float
    terms: int
    targets: int
    right: int | None = None

    @property
    def loss(self) -> float:
        """Nats a token, or the mean loss of a pair."""
        return self.total / max(1, self.terms)

    @property
    def accuracy(self) -> float | None:
        """Share of the pairs that are ranked right."""
        return None if self.right is None else self.right / max(1, self.terms)

    def bits_per_byte(self, tokens: int, text_bytes: int, vocabulary: int) -> float:
        """Bits for each byte of the text. A token that nothing predicts, a document's first, costs log2(vocabulary)."""
        unpredicted = (tokens - self.targets) * math.log(vocabulary)
        return (self.total + unpredicted) / math.log(2) / text_bytes


@torch.no_grad()
def evaluate(task: Task, rows: Fixed, wire: Collective, step: int) -> HeldOut:
    """Each micro-batch is computed by one replica; the sum is correctly rounded, so its order does not matter."""
    training = task.module.training
    task.module.eval()
    mine = torch.zeros(4, len(rows), dtype=torch.float64)
    for index in range(wire.rank, len(rows), wire.size):
        batch = rows.micro_batch(index)
        loss, right = task.measure(batch)
        goals, pieces = int((batch.targets != IGNORED).sum()), 0 if batch.pieces is None else len(batch.pieces)
        mine[:, index] = torch.tensor(
            [float(loss), task.terms(goals, pieces), goals, -1 if right is None else int(right)], dtype=torch.float64
        )
    task.module.train(training)
    everyone = [mine if r == wire.rank else torch.empty_like(mine) for r in range(wire.size)]
    all_gather(wire, Tag(step, Operation.EVALUATE), mine, everyone).wait()
    losses, *counts = torch.stack(everyone).sum(0)  # one replica has each micro-batch, the others hold zero
    terms, targets, pairs = (int(count.sum()) for count in counts)
    return HeldOut(math.fsum(losses.tolist()), terms, targets, None if pairs < 0 else pairs)
