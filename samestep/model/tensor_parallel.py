"""Tensor parallelism: each process of a replica has some heads of each attention and some columns inside each MLP.

All compute the same rows. The layers that read the residual stream are cut by outputs (*columns*), those that write to
it by inputs (*rows*), whose partial results are added up: one sum forward and one backward for each pair (Shoeybi et
al., "Megatron-LM", arXiv 1909.08053, section 3). Which layer is which is the model's own plan, as transformers has it.
What stays whole is computed by all alike: embeddings, norms and the output embedding.

Layers hold plain tensors, not DTensors, so that the built-in model's own kernels do their work on a part as on a whole.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from samestep.errors import RecipeError
from samestep.model.gpt import GPT
from samestep.model.split import Cut

AddUp = Callable[[Tensor], Tensor]  # the sum over the shards of a replica, the same bits on all

COLUMNS, ROWS, SUMMED = "colwise", "rowwise", "replicated_with_grad_allreduce"  # transformers' names
LLAMA = {
    "model.layers.*.self_attn.q_proj": COLUMNS,
    "model.layers.*.self_attn.k_proj": COLUMNS,
    "model.layers.*.self_attn.v_proj": COLUMNS,
    "model.layers.*.self_attn.o_proj": ROWS,
    "model.layers.*.mlp.gate_proj": COLUMNS,
    "model.layers.*.mlp.up_proj": COLUMNS,
    "model.layers.*.mlp.down_proj": ROWS,
}


def split(module: nn.Module, shards: int, shard: int, add_up: AddUp) -> dict[str, Cut]:
    """Leave of the module's layers the part of one shard. Returns how each parameter is cut, by name.

    RecipeError for a model without a plan, with a layer that this does not split, or whose heads do not divide.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    styles = _styles(module)
    _check_heads(module, shards)
    readers: dict[str, _Readers] = {}
    dims: dict[str, int] = {}
    for name, style in styles.items():
        layer, above = module.get_submodule(name), name.rpartition(".")[0]
        if style == SUMMED:
            for parameter in layer.parameters():
                parameter.register_hook(add_up)  # type: ignore[no-untyped-call]
        else:
            dims |= _narrow(name, layer, shards, shard, style)
        if style == COLUMNS:
            block = readers.setdefault(above, _Readers(module.get_submodule(above), add_up))
            layer.register_forward_pre_hook(block.enter)
        if style == ROWS:
            layer.register_forward_hook(lambda _layer, _given, out: together(out, add_up))
    return {name: Cut(shape, dims.get(name)) for name, shape in shapes.items()}


def together(part: Tensor, add_up: AddUp) -> Tensor:
    """The sum over the shards; each shard's gradient is that of the sum."""
    total: Tensor = _Together.apply(part, add_up)  # type: ignore[no-untyped-call]
    return total


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, add_up: AddUp) -> Tensor:
        return add_up(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Apart(torch.autograd.Function):
    """The same values on all shards; their gradients are added up."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, add_up: AddUp) -> Tensor:
        ctx.add_up = add_up
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.add_up(gradients[0]), None


class _Readers:
    """The layers of one block that read the same tensor: its gradient is added up once for all of them."""

    def __init__(self, block: nn.Module, add_up: AddUp) -> None:
        self._add_up = add_up
        self._whole: Tensor | None = None
        self._apart: Tensor | None = None
        block.register_forward_hook(self._leave)

    def enter(self, _layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._whole is not given[0]:
            self._whole, self._apart = given[0], _Apart.apply(given[0], self._add_up)  # type: ignore[no-untyped-call]
        return self._apart, *given[1:]

    def _leave(self, *_: Any) -> None:
        self._whole = self._apart = None  # activations are not kept longer than by backward


def _styles(module: nn.Module) -> dict[str, str]:
    """By the name of each layer that the plan names its style. The input and output embeddings stay whole."""
    plan: Mapping[str, str] = LLAMA if isinstance(module, GPT) else getattr(module, "tp_plan", None) or {}
    names = {name: re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in module.named_modules()}
    whole = _embeddings(module) if plan else []
    found = {
        name: plan[pattern]
        for name, pattern in names.items()
        if pattern in plan and not any(module.get_submodule(name) is embedding for embedding in whole)
    }
    parameters = {pattern: plan[pattern] for pattern in sorted(plan.keys() - names.values())}
    odd = [f"{name} {style}" for name, style in found.items() if style not in (COLUMNS, ROWS, SUMMED)]
    odd += [f"{name} {style}" for name, style in parameters.items()]
    if odd or not found:
        what = f"whose plan has {odd[0]}" if odd else "which has no plan for tensor parallelism"
        raise RecipeError(f"compute.shard tensor cannot split {type(module).__name__}, {what}; use compute.shard full")
    return found


def _embeddings(module: Any) -> list[nn.Module]:
    return [] if isinstance(module, GPT) else [module.get_input_embeddings(), module.get_output_embeddings()]


def _check_heads(module: Any, shards: int) -> None:
    if isinstance(module, GPT):
        counts = {"heads": module.shape.heads, "key heads": module.shape.key_heads}
    else:
        config = module.config
        heads = getattr(config, "num_attention_heads", shards)
        counts = {"heads": heads, "key heads": getattr(config, "num_key_value_heads", None) or heads}
    for what, count in counts.items():
        if count % shards:
            raise RecipeError(
                f"compute.shards is {shards}, but the model has {count} {what}, which do not split into so many; "
                f"choose another number"
            )


def _narrow(name: str, layer: nn.Module, shards: int, shard: int, style: str) -> dict[str, int]:
    """Replace the layer's parameters by the part of one shard. Returns the dimension of each, by its full name."""
    if not isinstance(layer, nn.Linear) or (style == ROWS and layer.bias is not None):
        what = "has a bias that would be added once a shard" if isinstance(layer, nn.Linear) else "is no linear layer"
        raise RecipeError(f"compute.shard tensor cannot split {name}: it {what}; use compute.shard full")
    dims = {"weight": 1} if style == ROWS else {"weight": 0} | ({} if layer.bias is None else {"bias": 0})
    for kind, dim in dims.items():
        whole = getattr(layer, kind)
        if whole.shape[dim] % shards:
            raise RecipeError(
                f"compute.shards is {shards}, but {name}.{kind} has the shape {list(whole.shape)}, which does not "
                f"split into so many; choose another number"
            )
        part = whole.detach().chunk(shards, dim)[shard].clone(memory_format=torch.contiguous_format)
        setattr(layer, kind, nn.Parameter(part, requires_grad=whole.requires_grad))
    layer.out_features, layer.in_features = layer.weight.shape
    return {f"{name}.{kind}": dim for kind, dim in dims.items()}
