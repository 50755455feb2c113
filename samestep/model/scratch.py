"""Memory that a model's loss works in, kept from one micro-batch to the next.

The output embedding's gradient, its cast and a chunk of logits are the largest pieces of a step. Asked for anew each
time, they find no whole place between the activations, and the heap grows: at 135 M parameters and 49,152 tokens by a
tenth of all memory within five steps.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Room(NamedTuple):
    """For an output embedding [vocabulary, width], with any values."""

    cast: Tensor | None  # [vocabulary, width] in the dtype of the products; None where it has that itself
    logits: Tensor  # [rows, vocabulary] in that dtype
    gradient: Tensor | None  # float32 [vocabulary, width]; None where it is frozen


def new_room(weight: Tensor, dtype: torch.dtype, rows: int) -> Room:
    """Of memory that nobody keeps."""
    return _room(weight, dtype, rows, lambda name, dtype, *shape: weight.new_empty(shape, dtype=dtype))


def _room(weight: Tensor, dtype: torch.dtype, rows: int, new: Callable[..., Tensor]) -> Room:
    cast = None if weight.dtype == dtype else new("cast", dtype, *weight.shape)
    gradient = new("gradient", torch.float32, *weight.shape) if weight.requires_grad else None
    return Room(cast, new("logits", dtype, rows, len(weight)), gradient)


class Scratch:
    """tied: `lookup` reads the output embedding too, whose gradient then waits here until that of `lookup` is added.

    A gradient is handed out in memory that the next loss overwrites: whoever gets it copies it before that.
    """

    def __init__(self, *, tied: bool) -> None:
        self.tied = tied
        self._kept: dict[str, Tensor] = {}

    def room(self, weight: Tensor, dtype: torch.dtype, rows: int) -> Room:
        """The same memory at each call for the same `weight`. To be called once before the first activations."""
        return _room(weight, dtype, rows, partial(self._tensor, weight.device))

    def lookup(self, tokens: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        """The rows of the tied `weight` for `tokens`; the token `padding` gets no gradient."""
        if not torch.is_grad_enabled():
            return F.embedding(tokens, weight)
        rows: Tensor = _Lookup.apply(tokens, weight, padding, self)  # type: ignore[no-untyped-call]
        return rows

    def gradient(self, weight: Tensor) -> Tensor:
        """Float32 memory of its shape."""
        return self._tensor(weight.device, "gradient", torch.float32, *weight.shape)

    def _tensor(self, device: torch.device, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        size, kept = math.prod(shape), self._kept.get(name)
        if kept is None or kept.numel() < size or (kept.dtype, kept.device) != (dtype, device):
            kept = self._kept[name] = torch.empty(size, dtype=dtype, device=device)
        return kept[:size].view(shape)


class _Lookup(torch.autograd.Function):
    """Its backward is the last of the model: the output embedding's gradient is complete then."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, padding: int | None, scratch: Scratch) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        ctx.padding, ctx.scratch = padding, scratch
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        tokens, weight = ctx.saved_tensors
        rows, ids = gradients[0].flatten(0, -2), tokens.flatten()
        if ctx.padding is not None:
            rows = rows.masked_fill((ids == ctx.padding)[:, None], 0)
        return None, ctx.scratch.gradient(weight).index_add_(0, ids, rows), None, None
