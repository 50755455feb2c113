"""The cross-entropy of a language model's head, in chunks, so that its logits are never whole in memory.

A chunk's gradients are computed beside its loss, while its logits exist, and only scaled in backward:
Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", arXiv 2410.10989 (fused linear cross-entropy).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samestep.model.layers import product_dtype
from samestep.model.scratch import Scratch, new_room

MASKED = -100  # a target position that is not trained on

# Rows a chunk. With fewer, the additions into the weight's gradient cost more (64: half as much time again); with
# more, memory grows for nothing. A GPU would wait for its next call.
ROWS = {"cpu": 256, "cuda": 2048}

# What else a chunk needs is computed in parts: softmax over a few rows, the weight's gradient for some tokens. Whole,
# the float32 logits of 256 rows and 49,152 tokens were 50 MB twice over, and the step's peak.
SOFTMAX = {"cpu": 2**21, "cuda": 2**27}  # numbers, 8 MiB and 512 MiB of float32
TOKENS = {"cpu": 8192, "cuda": 2**20}

# Where masked positions are left out, rows are padded to a multiple of this: few shapes for the matrix products, and
# never a single row, whose product is a matrix-vector one with other bits at other alignments.
MULTIPLE = 32


def cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int | None = None,
    *,
    skip_masked: bool = False,
    scratch: Scratch | None = None,
) -> Tensor:
    """The sum over `targets` of the cross-entropy of `hidden @ weight.T`, a float32 scalar.

    `hidden` is float32 or bfloat16 [N, width], `weight` float32 or bfloat16 [vocabulary, width], `targets` int64 [N]
    with -100 where a position counts for nothing. Matrix products are in the autocast dtype where autocast is on,
    else in the dtype of `hidden`; softmax, sums and the weight's gradient over chunks are float32. Chunks of `chunk`
    rows depend on the shape alone; with `skip_masked` on which positions are masked too, and those cost nothing.
    Under `torch.no_grad` only the loss is computed; for a frozen `weight` no gradient of it. With a `scratch` the
    weight's gradient is handed out in its memory.
    """
    hidden, chunk = hidden.to(product_dtype(hidden)), chunk or ROWS[hidden.device.type]
    if skip_masked:
        hidden, targets, _ = _without_masked(hidden, targets)
    if _trained(hidden, weight):
        loss: Tensor = _CrossEntropySum.apply(hidden, weight, targets, chunk, scratch)  # type: ignore[no-untyped-call]
        return loss
    weight = weight.to(hidden.dtype)
    return torch.stack([_losses(h, weight, t)[0].sum() for h, t in _chunks(hidden, targets, chunk)]).sum()


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """The cross-entropy of `hidden @ weight.T` at each position, float32 [N], 0 where the target is -100.

    Inputs and dtypes as for `cross_entropy_sum`; masked positions cost nothing. The gradient of `weight` needs that
    of the result, so backward computes each chunk's logits again for it, and nothing for a frozen `weight`.
    """
    chunk = chunk or ROWS[hidden.device.type]
    rows, row_targets, kept = _without_masked(hidden.to(product_dtype(hidden)), targets)
    if _trained(rows, weight):
        losses: Tensor = _CrossEntropy.apply(rows, weight, row_targets, chunk)  # type: ignore[no-untyped-call]
    else:
        weight = weight.to(rows.dtype)
        losses = torch.cat([_losses(h, weight, t)[0] for h, t in _chunks(rows, row_targets, chunk)])
    return losses.new_zeros(len(targets)).index_copy(0, kept, losses[: len(kept)])


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, scratch: Scratch | None
    ) -> Tensor:
        room = (scratch.room if scratch else new_room)(weight, hidden.dtype, min(chunk, len(hidden)))
        cast = weight if room.cast is None else room.cast.copy_(weight)
        for_weight = None if room.gradient is None else room.gradient.zero_()
        losses, for_hidden = [], []
        for h, t in _chunks(hidden, targets, chunk):
            loss, for_logits = _losses(h, cast, t, out=room.logits[: len(h)])
            kept = (t != MASKED)[:, None]
            losses.append(loss.sum())
            # Masked on the narrow side: a pass over [rows, width] costs little beside one over [rows, vocabulary].
            for_hidden.append((for_logits @ cast) * kept)
            if for_weight is not None:
                _add_product(for_weight, for_logits, h * kept)
        ctx.tied = scratch is not None and scratch.tied
        ctx.save_for_backward(torch.cat(for_hidden), for_weight)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        for_hidden, for_weight = ctx.saved_tensors
        # In place: a copy of the weight's gradient costs more than scaling it. torch refuses a second backward.
        scaled = None if for_weight is None else for_weight.mul_(scales[0])
        return for_hidden.mul_(scales[0]), None if ctx.tied else scaled, None, None, None


class _CrossEntropy(torch.autograd.Function):
    """The loss of each row. Masked rows must get no gradient: `_without_masked` leaves only padding, cut off later."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        product_weight = weight.to(hidden.dtype)
        losses, for_hidden = [], []
        for h, t in _chunks(hidden, targets, chunk):
            loss, for_logits = _losses(h, product_weight, t)
            losses.append(loss)
            for_hidden.append(for_logits @ product_weight)
        ctx.chunk = chunk
        again = (hidden, product_weight, targets) if ctx.needs_input_grad[1] else (None, None, None)
        ctx.save_for_backward(torch.cat(for_hidden), *again)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        for_hidden, hidden, product_weight, targets = ctx.saved_tensors
        scale, for_weight = scales[0][:, None], None
        if ctx.needs_input_grad[1]:
            for_weight = torch.zeros_like(product_weight, dtype=torch.float32)
            scaled = (hidden * scale).to(hidden.dtype)
            for h, s, t in zip(*(torch.split(x, ctx.chunk) for x in (hidden, scaled, targets)), strict=True):
                _add_product(for_weight, _losses(h, product_weight, t)[1], s)
        return for_hidden * scale, for_weight, None, None


def _trained(hidden: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)


def _without_masked(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The positions with a target, padded with masked ones to a multiple of rows, and their indices before padding."""
    kept = (targets != MASKED).nonzero()[:, 0]
    padding = -len(kept) % MULTIPLE
    return F.pad(hidden[kept], (0, 0, 0, padding)), F.pad(targets[kept], (0, padding), value=MASKED), kept


def _chunks(hidden: Tensor, targets: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)


def _losses(hidden: Tensor, weight: Tensor, targets: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The losses [rows] of one chunk in float32, and the gradient of its logits [rows, vocabulary], not masked."""
    logits = torch.mm(hidden, weight.T, out=out)
    few = max(1, SOFTMAX[hidden.device.type] // len(weight))
    parts = zip(torch.split(logits, few), torch.split(targets, few), strict=True)
    return torch.cat([_into_gradient(part, t) for part, t in parts]), logits


def _into_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """The losses [rows], float32, computed in float32; the gradient of the logits takes their place."""
    probabilities = logits.float().softmax(-1)
    # log(sum(exp(logits))) for two cheap passes: the likeliest token's probability is never below 1 / vocabulary.
    log_sums = logits.amax(-1).float() - probabilities.amax(-1).log()
    answers = targets.clamp(min=0)[:, None]
    picked = logits.gather(1, answers)[:, 0].float()
    logits.copy_(probabilities.scatter_add_(1, answers, torch.full_like(answers, -1, dtype=torch.float32)))
    return (log_sums - picked).masked_fill(targets == MASKED, 0)


def _add_product(total: Tensor, for_logits: Tensor, hidden: Tensor) -> None:
    """total += for_logits.T @ hidden, the product in their dtype, some tokens at a time."""
    few = TOKENS[total.device.type]
    for part, columns in zip(torch.split(total, few), torch.split(for_logits, few, dim=1), strict=True):
        part.add_(columns.T @ hidden)
