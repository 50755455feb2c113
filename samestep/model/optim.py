"""The optimizer's arithmetic on one piece of a parameter.

An update is made twice: `propose` on copies, which gives the new weights and changes nothing, so that a step
can be abandoned until all replicas have it; then `update` in place on commit. The second costs less than
keeping old values (two more arrays of the size of the owned weights).
Pieces lie at places fixed by the recipe: the fused kernels round differently in their vector loop and in its
tail, so a cut that followed the number of replicas would change bits.
All tensors are float32, contiguous and flat, of one length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from samestep.recipe.schema import Optimizer

BLOCK = 65_536  # elements; copies made block by block stay in the second-level cache


@dataclass(frozen=True)
class Rates:
    """The numbers of one update of one parameter. `count` is 1 at its first update."""

    learning_rate: float
    decayed: bool  # whether the rule's weight decay applies
    count: int


class Rule(Protocol):
    @property
    def moments(self) -> int:
        """Tensors kept for each weight, zero at the start."""

    def update(self, weight: Tensor, gradient: Tensor, kept: Sequence[Tensor], rates: Rates) -> None:
        """Change weights and moments in place."""


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2)."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    moments: int = field(default=2, init=False)

    def update(self, weight: Tensor, gradient: Tensor, kept: Sequence[Tensor], rates: Rates) -> None:
        first, second = kept
        torch._fused_adamw_(
            [weight],
            [gradient],
            [first],
            [second],
            [],
            [torch.tensor(float(rates.count), device=weight.device)],
            lr=rates.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay if rates.decayed else 0.0,
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

    def update(self, weight: Tensor, gradient: Tensor, kept: Sequence[Tensor], rates: Rates) -> None:
        torch._fused_sgd_(
            [weight],
            [gradient],
            list(kept),
            lr=rates.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay if rates.decayed else 0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=rates.count == 1,
        )


def propose(rule: Rule, weight: Tensor, gradient: Tensor, kept: Sequence[Tensor], out: Tensor, rates: Rates) -> None:
    """Write to `out` what `rule.update` would make of `weight`; all else stays as it is."""
    for start in range(0, weight.numel(), BLOCK):
        block = slice(start, start + BLOCK)
        new = out[block].copy_(weight[block])
        rule.update(new, gradient[block], [k[block].clone() for k in kept], rates)


def commit(rule: Rule, weight: Tensor, gradient: Tensor, kept: Sequence[Tensor], rates: Rates) -> None:
    """Update in place, in the blocks of `propose`."""
    for start in range(0, weight.numel(), BLOCK):
        block = slice(start, start + BLOCK)
        rule.update(weight[block], gradient[block], [k[block] for k in kept], rates)


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
