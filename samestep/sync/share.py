"""What one replica has to do in a generation: which lanes it computes, which regions it updates, which it keeps.

A bucket is divided among the replicas in rank order. A replica *owns* its part: it adds up the gradient there, updates
the weights and sends them round. With several *copies* the ranks after it keep the moments of that part too and make
the same update from the same gradient, so that what one replica takes with it the next still has. It costs memory and
no traffic: they get the gradient in the place of the new weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from samestep.sync.slices import Layout, Region
from samestep.sync.tree import Node


class Turn(NamedTuple):
    """One lane's place in the additions: the buffer it starts in, how many additions follow it, and the partial sum
    that it is a part of.
    """

    buffer: int
    merges: int
    part: int


def turns(merges: Sequence[Sequence[int]]) -> list[Turn]:
    """The turn of each lane, from the merges of each partial sum; partial sum i ends in buffer i."""
    result = []
    for base, counts in enumerate(merges):
        depth = 0
        for count in counts:
            result.append(Turn(base + depth, count, base))
            depth += 1 - count
    return result


def buffers(turns: Sequence[Turn], accumulate: int) -> int:
    """The gradient buffers that these turns take; a lane of a single micro-batch is merged without being stored."""
    return 1 + max(turn.buffer for turn in turns if accumulate > 1 or not turn.merges)


@dataclass(frozen=True)
class Share:
    """owned: by bucket. held: by bucket, the regions whose moments are kept, by their owner; none is empty.

    sums: by the buffer that it ends up in, the node of the tree that is summed up; empty where there is no tree.
    """

    span: range
    turns: list[Turn]
    owned: list[Region]
    held: list[dict[int, Region]]
    sums: Mapping[int, Node] = field(default_factory=dict)


def holders(owner: int, size: int, copies: int) -> list[int]:
    """The ranks that keep the moments of what `owner` owns, itself first. More copies than ranks are as many."""
    return [(owner + k) % size for k in range(min(copies, size))]


def held(layout: Layout, rank: int, size: int, copies: int) -> list[dict[int, Region]]:
    """By bucket, the regions that `rank` of `size` keeps, by their owner."""
    owners = [owner for owner in range(size) if rank in holders(owner, size, copies)]
    return [
        {owner: region for owner in owners if (region := layout.owned(bucket, owner, size)).size}
        for bucket in range(layout.buckets)
    ]
