"""How the parameters of a model are split over the processes of one replica. Pure functions of shapes.

A parameter is cut into equal parts along one of its dimensions, or every process has the whole of it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from samestep.errors import RecipeError


class Cut(NamedTuple):
    """shape: of the whole parameter. dim: along which it is cut; None: every shard has the whole."""

    shape: tuple[int, ...]
    dim: int | None


def evenly(shapes: Mapping[str, Sequence[int]], shards: int) -> dict[str, Cut]:
    """Each parameter cut along its first dimension that splits into `shards`. RecipeError where there is none."""
    return {name: Cut(tuple(shape), _dimension(name, shape, shards)) for name, shape in shapes.items()}


def _dimension(name: str, shape: Sequence[int], shards: int) -> int:
    for dim, size in enumerate(shape):
        if size % shards == 0:
            return dim
    raise RecipeError(
        f"{name} has the shape {list(shape)}, no side of which splits into compute.shards {shards} parts; "
        f"choose another number"
    )
