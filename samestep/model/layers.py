"""The parts of the built-in model that keep less for backward, or take less time, than torch's own."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.model.destination import take

PLAIN_ATTENTION = 512  # tokens; longest context whose bfloat16 scores are computed whole on a CPU


def product_dtype(tensor: Tensor) -> torch.dtype:
    """What a matrix product of `tensor` is computed in: the autocast dtype where autocast is on, else its own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


class Norm(nn.Module):
    """RMSNorm in float32, given out in the product dtype: cast once for all the products that read it."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return again(_norm, self.epsilon, product_dtype(hidden), hidden, self.weight)


def _norm(epsilon: float, dtype: torch.dtype, hidden: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(hidden, weight.shape, weight, epsilon).to(dtype)


def again(function: Callable[..., Tensor], *given: Any) -> Tensor:
    """function(*given), of which nothing but what was given is kept: backward computes it again."""
    if _as_written():
        return function(*given)
    out: Tensor = _Again.apply(function, *given)  # type: ignore[no-untyped-call]
    return out


def _as_written() -> bool:
    """Whether torch's own functions will do: no backward follows, or the compiler chooses what is kept for it."""
    return torch.compiler.is_compiling() or not torch.is_grad_enabled()


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *given: Any) -> Tensor:
        ctx.function, ctx.others = function, [None if isinstance(one, Tensor) else one for one in given]
        ctx.save_for_backward(*(one if isinstance(one, Tensor) else None for one in given))
        return function(*given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        saved = zip(ctx.saved_tensors, ctx.others, wanted, strict=True)
        given = [other if t is None else t.detach().requires_grad_(want) for t, other, want in saved]
        with torch.enable_grad():
            fed = _Fed.apply(ctx.function(*given), gradients[0])  # type: ignore[no-untyped-call]
        asked = [one for one, want in zip(given, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(fed, asked))
        return None, *(next(found) if want else None for want in wanted)


class _Fed(torch.autograd.Function):
    """A scalar whose backward goes on with `gradient`. Given to torch.autograd.grad itself, the first gradient makes it
    import sympy, in the middle of backward: 34 MB, and a heap in splinters.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return out.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


class Linear(nn.Linear):
    """Without a bias. Under autocast the cast weight is not kept until backward but cast again: for a cast that takes
    a hundredth of a step, half the memory of the weights is saved.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = product_dtype(hidden)
        if dtype == self.weight.dtype or _as_written():
            return F.linear(hidden, self.weight)
        out: Tensor = _CastProduct.apply(hidden.to(dtype), self.weight)  # type: ignore[no-untyped-call]
        return out


class _CastProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden if ctx.needs_input_grad[1] else None, weight)
        return F.linear(hidden, weight.to(hidden.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        return _product_gradients(gradients[0], hidden, weight, ctx.needs_input_grad[1])


def _product_gradients(
    gradient: Tensor, hidden: Tensor | None, weight: Tensor, trained: bool
) -> tuple[Tensor, Tensor | None]:
    """Of hidden @ weight.T, for the gradient of it: those of `hidden` and, where it is trained, of `weight`."""
    rows = gradient.flatten(0, -2)
    for_hidden = (rows @ weight.to(gradient.dtype)).view(*gradient.shape[:-1], -1)
    if not trained or hidden is None:
        return for_hidden, None
    product, place = rows.T @ hidden.flatten(0, -2), take(weight)
    return for_hidden, product.to(weight.dtype) if place is None else place.copy_(product)


def gated(gate: Tensor, up: Tensor, down: nn.Module) -> Tensor:
    """down(silu(gate) * up), of which only `gate` and `up` are kept where `down` is a Linear with nothing around it."""
    if type(down) is Linear and not down._forward_hooks and not _as_written():
        out: Tensor = _Gated.apply(gate, up, down.weight)  # type: ignore[no-untyped-call]
    else:
        out = down(again(_gate, gate, up))
    return out


def _gate(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return F.linear(_gate(gate, up), weight.to(gate.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        gate, up, weight = ctx.saved_tensors
        opened = F.silu(gate)
        for_product, for_weight = _product_gradients(gradients[0], opened * up, weight, ctx.needs_input_grad[2])
        for_gate = torch.ops.aten.silu_backward(for_product * up, gate)
        return for_gate, for_product * opened, for_weight


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn `heads` [batch, heads, time, size] by the angles [..., time, size / 2] of their positions, in float32."""
    left, right = heads.chunk(2, -1)
    turned = torch.cat((left * cosines - right * sines, right * cosines + left * sines), -1)
    return turned.to(heads.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, wall: Tensor | None = None) -> Tensor:
    """Causal attention over [batch, heads, time, size]; of `k` and `v` there may be fewer heads, each for several of
    `q`. `wall` [batch, 1, time, time] is added to the scores in place of the causal mask.

    torch's flash kernel for CPUs takes twice the time of plain products in bfloat16 (measured to 512 tokens: 44 ms
    against 20 at 8 x 256, a tenth of a step), so short contexts compute their scores whole, and again in backward.
    """
    time, several = q.shape[-2], q.shape[1] // k.shape[1]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or time > PLAIN_ATTENTION:
        return F.scaled_dot_product_attention(q, k, v, wall, is_causal=wall is None, enable_gqa=several > 1)
    if wall is None:
        wall = torch.full((time, k.shape[-2]), float("-inf"), dtype=q.dtype).triu(1)
    return again(_attend, q, k, v, wall)


def _attend(q: Tensor, k: Tensor, v: Tensor, wall: Tensor) -> Tensor:
    time, several = q.shape[-2], q.shape[1] // k.shape[1]
    with torch.autocast("cpu", enabled=False):  # it would make float32 copies for a softmax that is float32 inside
        batch, heads, _, size = k.shape
        asked = (q / math.sqrt(size)).reshape(batch, heads, several * time, size)  # one product a head of keys
        scores = (asked @ k.transpose(-1, -2)).view(batch, heads, several, time, -1).add_(wall.unsqueeze(-3))
        mixed: Tensor = scores.softmax(-1).flatten(2, 3) @ v
        return mixed.reshape(q.shape)
