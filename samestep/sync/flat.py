"""Flat float32 buffers with one view a parameter."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samestep.errors import RecipeError
from samestep.sync.slices import Layout, Region


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get gradients, tied ones once, in the order of registration. RecipeError if unusable."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not named:
        raise RecipeError("the model has no parameter that requires a gradient; nothing can be trained")
    for name, parameter in named.items():
        if parameter.dtype != torch.float32:
            raise RecipeError(
                f"parameter {name} is {str(parameter.dtype).removeprefix('torch.')}, but weights are kept and summed "
                f"in float32; convert the model with .float() and use autocast for bfloat16"
            )
    return named


def here(tensor: Tensor) -> Tensor:
    """What of a tensor this process has: its part of one that is sharded (torch's DTensor), else the tensor itself."""
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def views(flat: Tensor, layout: Layout, parameters: Sequence[Tensor]) -> list[Tensor]:
    """For each parameter its part of the buffer, in its shape."""
    return [flat[r.start : r.stop].view(here(p).shape) for r, p in zip(layout.regions, parameters, strict=True)]


@torch.no_grad()
def flatten(parameters: Sequence[nn.Parameter], layout: Layout) -> Tensor:
    """Move the parameters' values to one new flat buffer and let them live there."""
    flat = torch.zeros(layout.total, device=parameters[0].device)
    for parameter, view in zip(parameters, views(flat, layout, parameters), strict=True):
        view.copy_(here(parameter))
        _live(parameter, view)
    return flat


def _live(parameter: nn.Parameter, view: Tensor) -> None:
    """FSDP takes up before its first forward where the parts of its parameters are by then."""
    if here(parameter) is parameter:
        parameter.data = view
    else:
        parameter._local_tensor = view  # type: ignore[attr-defined]


def cut(flat: Tensor, region: Region) -> Tensor:
    return flat[region.start : region.stop]
