"""Who sends which part of the state to whom when a new generation begins. Pure functions of integers.

Moments are divided anew among the ranks of the new generation; each rank gets what it has to hold from a replica that
held it in the old one. Ranks here are those of the new generation; `before[o]` is what has become of old rank o, None
if it is gone.
"""

from collections.abc import Sequence
from typing import NamedTuple

from samestep.sync.share import held, holders
from samestep.sync.slices import Layout, Region
from samestep.sync.tree import spans


class Move(NamedTuple):
    """`source` holds `region` inside the old region `within` and gives it to `target` (itself, maybe)."""

    source: int
    target: int
    region: Region
    within: Region
    to: Region  # the new region that it becomes a part of


def moments(layout: Layout, before: Sequence[int | None], size: int, copies: int, bucket: int) -> list[Move]:
    """The moves of a bucket's moments. ValueError where nobody holds some part any more."""
    moves = []
    old = [(owner, region) for owner in range(len(before)) if (region := layout.owned(bucket, owner, len(before))).size]
    for target in range(size):
        for new in held(layout, target, size, copies)[bucket].values():
            for owner, region in old:
                both = Region(max(new.start, region.start), min(new.stop, region.stop))
                if both.size > 0:
                    alive = _alive(before, owner, copies)
                    source = target if target in alive else alive[target % len(alive)]
                    moves.append(Move(source, target, both, region, new))
    return moves


def weights(before: Sequence[int | None], size: int, bucket: int) -> list[tuple[int, int]]:
    """(source, target) of a bucket's weights: to each rank that was not there before; the sources take turns."""
    sources = sorted(rank for rank in before if rank is not None)
    joined = [rank for rank in range(size) if rank not in sources]
    return [(sources[(bucket + target) % len(sources)], target) for target in joined]


def units(count: int, before: Sequence[int | None], size: int) -> list[tuple[int, int, int]]:
    """(unit, source, target) of what belongs to each unit alone. ValueError where its replica is gone."""
    old, new = _carriers(count, len(before)), _carriers(count, size)
    moves = []
    for unit in range(count):
        source = before[old[unit]]
        if source is None:
            raise ValueError(f"nobody holds what unit {unit} had: old rank {old[unit]} is gone")
        moves.append((unit, source, new[unit]))
    return moves


def _carriers(count: int, size: int) -> list[int]:
    """The rank that has each unit."""
    return [rank for rank, span in enumerate(spans(count, size)) for _ in span]


def _alive(before: Sequence[int | None], owner: int, copies: int) -> list[int]:
    found = [before[old] for old in holders(owner, len(before), copies)]
    alive = [rank for rank in found if rank is not None]
    if not alive:
        raise ValueError(f"nobody holds what old rank {owner} owned")
    return alive
