"""The summed cross-entropy of a language model's head, in chunks, so that its logits are never whole in memory.

A chunk's gradients are computed beside its loss, while its logits exist, and only scaled in backward:
Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", arXiv 2410.10989 (fused linear cross-entropy).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MASKED = -100  # a target position that is not trained on

# Rows a chunk. With fewer, the additions into the weight's gradient cost more (64: half as much time again); with
# more, memory grows for nothing. At 8192 tokens a chunk's float32 logits are 8 MiB, which malloc still reuses.
ROWS = 256


def cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = ROWS) -> Tensor:
    """The sum over `targets` of the cross-entropy of `hidden @ weight.T`, a float32 scalar.

    `hidden` is float32 or bfloat16 [N, width], `weight` float32 or bfloat16 [vocabulary, width], `targets` int64 [N]
    with -100 where a position counts for nothing. Matrix products are in the autocast dtype where autocast is on,
    else in the dtype of `hidden`; softmax, sums and the weight's gradient over chunks are float32. Chunks of `chunk`
    rows depend on the shape alone. Under `torch.no_grad` only the loss is computed.
    """
    hidden = hidden.to(product_dtype(hidden))
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _CrossEntropySum.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
        return loss
    weight = weight.to(hidden.dtype)
    return torch.stack([_loss(h, weight, t)[0] for h, t in _chunks(hidden, targets, chunk)]).sum()


def product_dtype(tensor: Tensor) -> torch.dtype:
    """What a matrix product of `tensor` is computed in: the autocast dtype where autocast is on, else its own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        product_weight = weight.to(hidden.dtype)
        losses, for_hidden, for_weight = [], [], None
        for h, t in _chunks(hidden, targets, chunk):
            loss, probabilities = _loss(h, product_weight, t)
            chunk_for_hidden, chunk_for_weight = _gradients(h, product_weight, t, probabilities)
            losses.append(loss)
            for_hidden.append(chunk_for_hidden)
            for_weight = chunk_for_weight.float() if for_weight is None else for_weight.add_(chunk_for_weight)
        ctx.save_for_backward(torch.cat(for_hidden), for_weight)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor, Tensor, None, None]:
        for_hidden, for_weight = ctx.saved_tensors
        # In place: a copy of the weight's gradient costs more than scaling it. torch refuses a second backward.
        return for_hidden.mul_(scales[0]), for_weight.mul_(scales[0]), None, None


def _chunks(hidden: Tensor, targets: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)


def _loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of one chunk and its probabilities [rows, vocabulary], both float32."""
    logits = hidden @ weight.T
    probabilities = logits.float().softmax(-1)
    # log(sum(exp(logits))) for two cheap passes: the likeliest token's probability is never below 1 / vocabulary.
    log_sums = logits.amax(-1).float() - probabilities.amax(-1).log()
    picked = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0].float()
    return (log_sums - picked).masked_fill(targets == MASKED, 0).sum(), probabilities


def _gradients(hidden: Tensor, weight: Tensor, targets: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk's gradients of hidden [rows, width] and weight [vocabulary, width]; uses up `probabilities`."""
    kept = (targets != MASKED)[:, None]
    probabilities[torch.arange(len(targets), device=targets.device), targets.clamp(min=0)] -= 1
    for_logits = probabilities.to(hidden.dtype)
    # Masked on the narrow side: a pass over [rows, width] costs little beside one over [rows, vocabulary].
    return (for_logits @ weight) * kept, for_logits.T @ (hidden * kept)
