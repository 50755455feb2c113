"""Held-out loss, computed by all replicas together and the same at any number of them."""

import math
from typing import NamedTuple

import torch

from samestep.data.feed import IGNORED, Fixed
from samestep.model.task import Task
from samestep.wire.collective import Collective, Operation, Tag, all_gather


class HeldOut(NamedTuple):
    """nats: the summed loss over `targets` tokens."""

    nats: float
    targets: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / max(1, self.targets)

    def bits_per_byte(self, tokens: int, text_bytes: int, vocabulary: int) -> float:
        """Bits for each byte of the text. A token that nothing predicts, a document's first, costs log2(vocabulary)."""
        unpredicted = (tokens - self.targets) * math.log(vocabulary)
        return (self.nats + unpredicted) / math.log(2) / text_bytes


@torch.no_grad()
def evaluate(task: Task, rows: Fixed, wire: Collective, step: int) -> HeldOut:
    """Each micro-batch is computed by one replica; the sum is correctly rounded, so its order does not matter."""
    training = task.module.training
    task.module.eval()
    mine = torch.zeros(2, len(rows), dtype=torch.float64)
    for index in range(wire.rank, len(rows), wire.size):
        batch = rows.micro_batch(index)
        mine[0, index] = task.loss(batch)
        mine[1, index] = (batch.targets != IGNORED).sum()
    task.module.train(training)
    everyone = [mine if r == wire.rank else torch.empty_like(mine) for r in range(wire.size)]
    all_gather(wire, Tag(step, Operation.EVALUATE), mine, everyone).wait()
    nats, targets = torch.stack(everyone).sum(0)  # one replica has each micro-batch, the others hold zero
    return HeldOut(math.fsum(nats.tolist()), int(targets.sum()))
