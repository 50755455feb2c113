"""The few numbers that replicas tell each other between the gradient of a step and its update, in one message."""

from collections.abc import Sequence

import torch
from torch import Tensor

from samestep.wire.collective import Collective, Operation, Tag, all_gather


def told(
    wire: Collective, step: int, claims: Sequence[Tensor], scalars: Sequence[Tensor]
) -> tuple[list[list[list[int]]], list[Tensor]]:
    """claims: int64 [n] each; scalars: float64 [n] each. Of every replica, by rank: each claim, [replicas][n]; each of
    the scalars, [replicas, n].
    """
    mine = torch.cat([*claims, *(part.view(torch.int64) for part in scalars)])
    everyone = [mine if rank == wire.rank else torch.empty_like(mine) for rank in range(wire.size)]
    all_gather(wire, Tag(step, Operation.SCALARS), mine, everyone).wait()
    parts = torch.split(torch.stack(everyone), [len(part) for part in [*claims, *scalars]], dim=1)
    numbers = [part.contiguous().view(torch.float64) for part in parts[len(claims) :]]
    return [part.tolist() for part in parts[: len(claims)]], numbers
