"""Where a gradient is wanted: a layer that can writes it there, and nothing has to copy it.

    offer(parameter, place)     whoever adds gradients up, before forward
    take(parameter)             the layer, in backward: the place, once

Of a parameter that is used twice in a forward, one gradient takes the place, and torch adds the other to it elsewhere.
A gradient that was made elsewhere is copied by whoever wants it.
"""

from torch import Tensor

NAME = "wanted_at"  # an attribute of the parameter


def offer(parameter: Tensor, place: Tensor | None) -> None:
    """place: memory of its shape and dtype, a view that nobody keeps, or torch would copy it; None: no longer."""
    parameter.__dict__.pop(NAME, None)
    if place is not None:
        setattr(parameter, NAME, place)


def take(parameter: Tensor) -> Tensor | None:
    """The place that was offered, for the gradient of one use of the parameter."""
    place: Tensor | None = parameter.__dict__.pop(NAME, None)
    return place
