"""A replica that is several processes, each with a part of the model.

Inside a replica a micro-batch is computed by all of its processes together; how they divide it is a part of the recipe,
as are the sums between them. Between replicas, those with the same part (a *column*) make the exact step of that part,
as if it were the whole model: so nothing here follows the number of replicas.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from samestep.data.order import mix
from samestep.model import tensor_parallel
from samestep.model.split import Cut, evenly
from samestep.model.task import Task
from samestep.recover import whole
from samestep.recover.shards import Part
from samestep.recover.whole import Bytes
from samestep.sync.flat import here
from samestep.wire.inside import Alone, Inside, add_up

if TYPE_CHECKING:
    from samestep.data.feed import MicroBatch
    from samestep.wire.torch_backend import Shards


@dataclass(frozen=True)
class Split:
    """cuts: of each parameter by name; one that is not there is whole. make: the task with a model that is not split,
    to be filled with trained weights.
    """

    inside: Inside = field(default_factory=Alone)
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    make: Callable[[], Task] | None = None

    def shape(self, name: str, parameter: Tensor) -> list[int]:
        """Of the whole parameter."""
        return list(self.cuts[name].shape if name in self.cuts else parameter.shape)

    def counted_elsewhere(self, name: str) -> bool:
        """Whether another shard has the same values, and the lower rank."""
        return self.inside.rank > 0 and self.cuts[name].dim is None

    def agreed(self, squares: float, wish: int) -> tuple[list[float], int]:
        """Of all shards: the sums of squares of their gradients in order, and the highest wish."""
        numbers = torch.tensor([squares, wish], dtype=torch.float64)
        told = [each.tolist() for each in self.inside.gather(numbers)]
        return [mine for mine, _ in told], int(max(wished for _, wished in told))

    def whole(self, name: str, parameter: Tensor) -> Tensor:
        """The whole of a parameter of which this is the part that is here."""
        cut = self.cuts.get(name)
        if cut is None or cut.dim is None:
            return parameter
        return torch.cat(self.inside.gather(parameter), cut.dim)

    def joined(self, parts: Mapping[Part, Tensor]) -> dict[Part, Tensor]:
        """A snapshot of all shards, with the parts of whole parameters; on the first of them only, elsewhere empty."""
        if self.inside.size == 1:
            return dict(parts)
        found: dict[Part, Tensor] = {}
        for part, values in parts.items():
            together = whole.joined(part, self.inside.gather(values), self.cuts[part.parameter])
            found |= {} if self.inside.rank else together
        return found

    def own(self, parts: Bytes) -> Bytes:
        """Of the parts of whole parameters what is here."""
        return parts if self.inside.size == 1 else whole.own(parts, self.cuts, self.inside.rank, self.inside.size)

    @torch.no_grad()
    def gathered(self, task: Task) -> Task | None:
        """The task with the whole model, to be saved and asked; None but on the first shard."""
        if self.make is None:
            return task
        found = None if self.inside.rank else self.make()
        targets = dict(found.module.named_parameters()) if found else {}
        for name, parameter in task.module.named_parameters():
            values = self.whole(name, here(parameter.detach()))
            if found:
                targets[name].data = values
        return found


WHOLE = Split()


def over(shards: "Shards", how: str, make: Callable[[], Task]) -> tuple[Task, Split]:
    """The task that `make` gives, computed by all shards together. how: compute.shard of the recipe."""
    task = make()
    return HOW[how](shards, task, partial(Split, shards, make=make))


def _full(shards: "Shards", task: Task, split: Callable[..., Split]) -> tuple[Task, Split]:
    """Each computes its rows of a micro-batch."""
    from samestep.wire.torch_backend import fully_sharded

    named = dict(task.module.named_parameters())
    cuts = evenly({name: parameter.shape for name, parameter in named.items()}, shards.size)
    dims = {parameter: cuts[name].dim or 0 for name, parameter in named.items()}
    compute = fully_sharded(shards, task.module, blocks(task.module), dims, task.measure)

    def measure(batch: "MicroBatch") -> tuple[Tensor, None]:
        loss, _ = compute(rows(batch, shards.rank, shards.size))
        return tensor_parallel.together(loss, partial(add_up, shards)), None

    def loss(batch: "MicroBatch") -> Tensor:
        torch.manual_seed(mix(torch.initial_seed(), shards.rank))  # its rows have their own dropout
        return measure(batch)[0]

    return replace(task, loss=loss, measure=measure), split(cuts=cuts)


def _tensor(shards: "Shards", task: Task, split: Callable[..., Split]) -> tuple[Task, Split]:
    """All compute the same rows."""
    cuts = tensor_parallel.split(task.module, shards.size, shards.rank, partial(add_up, shards))
    return task, split(cuts=cuts)


HOW: dict[str, Callable[["Shards", Task, Callable[..., Split]], tuple[Task, Split]]] = {
    "full": _full,
    "tensor": _tensor,
}


def rows(batch: "MicroBatch", shard: int, shards: int) -> "MicroBatch":
    """One shard's rows of a micro-batch of a language model."""
    mine = slice(*(len(batch.tokens) * k // shards for k in (shard, shard + 1)))
    positions = None if batch.positions is None else batch.positions[mine]
    return replace(batch, tokens=batch.tokens[mine], targets=batch.targets[mine], positions=positions, pieces=None)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The layers that stand one after the other: what is in the module's outermost lists."""
    found: list[nn.Module] = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found
