"""The processes of one replica, each of which has a part of its model. They stand on one host and end together."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Inside(Protocol):
    """Between the shards of one replica. All call the methods in one order."""

    @property
    def rank(self) -> int:
        """Which shard this process has."""

    @property
    def size(self) -> int:
        """How many there are; the recipe says it."""

    def gather(self, tensor: "Tensor") -> "list[Tensor]":
        """The tensors of all shards, which have one shape and dtype, in the order of the shards."""


class Alone:
    """A replica that is one process and has the whole model."""

    rank, size = 0, 1

    def gather(self, tensor: "Tensor") -> "list[Tensor]":
        return [tensor]


def add_up(inside: Inside, tensor: "Tensor") -> "Tensor":
    """The sum over the shards, in their order and in float32, then in the dtype of `tensor`: the same bits on all."""
    first, *others = inside.gather(tensor)
    total = first.float()
    for other in others:
        total = total + other
    return total.to(tensor.dtype)
