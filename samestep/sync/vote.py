"""Replicas that should hold the same: who holds something else. Pure functions of numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from samestep.sync.share import holders


class Dispute(NamedTuple):
    """Copies of what `owner` owns differ. odd: the ranks that hold something else than most; without a majority all
    that hold it, for nobody can tell.
    """

    owner: int
    odd: list[int]
    outvoted: bool


def disputes(claims: Sequence[Sequence[int]], copies: int) -> list[Dispute]:
    """claims: of each rank, by owner, a sum over what it holds for it; of what it does not hold anything."""
    found = []
    for owner in range(len(claims)):
        ranks = holders(owner, len(claims), copies)
        said = {rank: claims[rank][owner] for rank in ranks}
        common, count = Counter(said.values()).most_common(1)[0]
        if count < len(ranks):
            outvoted = 2 * count > len(ranks)
            odd = [rank for rank in ranks if said[rank] != common] if outvoted else ranks
            found.append(Dispute(owner, odd, outvoted))
    return found
