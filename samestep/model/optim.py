"""The optimizer's arithmetic on pieces of parameters.

Pieces lie at places fixed by the recipe: the fused kernels round differently in their vector loop and in its tail,
so a cut that followed the number of replicas would change bits. All tensors are float32, contiguous and flat; those
at one place of the lists have one length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from samestep.recipe.schema import Optimizer

Pieces = list[Tensor]


class Rule(Protocol):
    @property
    def moments(self) -> int:
        """Tensors kept for each weight, zero at the start."""

    def update(
        self,
        weights: Pieces,
        gradients: Pieces,
        kept: Sequence[Pieces],
        counts: Sequence[int],
        rate: float,
        decay: bool,
    ) -> None:
        """Change weights and moments in place.

        `kept[m][i]` is moment m of piece i, `counts[i]` the number of its update (1 at the first); `rate` is the
        learning rate, `decay` whether the rule's weight decay applies to these pieces.
        """


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2)."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    moments: int = field(default=2, init=False)

    def update(
        self,
        weights: Pieces,
        gradients: Pieces,
        kept: Sequence[Pieces],
        counts: Sequence[int],
        rate: float,
        decay: bool,
    ) -> None:
        device = weights[0].device
        steps = {count: torch.full((), float(count), device=device) for count in set(counts)}  # a GPU is not waited for
        torch._fused_adamw_(
            weights,
            gradients,
            kept[0],
            kept[1],
            [],
            [steps[count] for count in counts],
            lr=rate,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay if decay else 0.0,
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
        )


@dataclass(frozen=True)
class SGD:
    """Gradient descent with heavy-ball momentum and no dampening; weight decay is added to the gradient."""

    momentum: float = 0.9
    weight_decay: float = 0.0
    moments: int = field(default=1, init=False)

    def update(
        self,
        weights: Pieces,
        gradients: Pieces,
        kept: Sequence[Pieces],
        counts: Sequence[int],
        rate: float,
        decay: bool,
    ) -> None:
        del counts  # momentum starts from zero, so the first update is like any other
        torch._fused_sgd_(
            weights,
            gradients,
            kept[0],
            lr=rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay if decay else 0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


@dataclass(frozen=True)
class Nesterov:
    """Nesterov's momentum as in DiLoCo's outer step (arXiv 2311.08105, section 2); no weight decay.

    Each operation rounds once, so pieces may be cut anywhere. plain: the first updates, which have no momentum and
    leave none.
    """

    momentum: float = 0.9
    plain: int = 0
    moments: int = field(default=1, init=False)

    def update(
        self,
        weights: Pieces,
        gradients: Pieces,
        kept: Sequence[Pieces],
        counts: Sequence[int],
        rate: float,
        decay: bool,
    ) -> None:
        del decay
        for weight, gradient, moment, count in zip(weights, gradients, kept[0], counts, strict=True):
            if count <= self.plain:
                weight.sub_(gradient.mul(rate))
                continue
            moment.mul_(self.momentum).add_(gradient)
            weight.sub_(moment.mul(self.momentum).add_(gradient).mul_(rate))


def rule(optimizer: Optimizer) -> Rule:
    """The rule that a recipe names."""
    menu: dict[str, Rule] = {
        "adamw": AdamW(optimizer.beta1, optimizer.beta2, optimizer.epsilon, optimizer.weight_decay),
        "sgd": SGD(optimizer.momentum, optimizer.weight_decay),
    }
    return menu[optimizer.kind]


def decays(parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, not to vectors (norms, biases)."""
    return parameter.dim() >= 2
