"""How many replicas hold each moment of the optimizer, where a recipe leaves it open (sync.state: auto).

It changes no bit of the model: only what a death costs, and the memory and time that copies take. The update of what a
replica holds takes about 1 ms a million weights, so holding everything costs time that grows with the replicas beside
it: up to three of them it is at most half as much again as with mirrors.
"""

from typing import NamedTuple

from samestep import units

FEW = 3  # replicas; a third copy also lets two of them outvote one whose bits have flipped
LITTLE, HALF = 8, 2  # parts of the free memory: for copies of everything; for all that training holds but activations


class Holding(NamedTuple):
    state: str  # replicated, mirrored or sharded
    reason: str


def choose(moments: int | None, replicas: int, free: int | None) -> Holding:
    """moments: bytes of one copy, about those of a replica's weights and gradients. replicas: on one host, of which
    `free` bytes of memory are free. None: not known.
    """
    if replicas == 1:
        return Holding("sharded", "the only replica holds all moments; what is lost comes from the newest checkpoint")
    if moments is None or free is None:
        what = "the size of the model" if moments is None else "the free memory"
        return Holding("mirrored", f"{what} is not known, so two replicas hold each moment")
    most = replicas * moments
    have = f"{units.size(free)} of free memory"
    if replicas <= FEW and LITTLE * most <= free:
        return Holding(
            "replicated",
            f"{replicas} copies of {units.size(moments)} of moments take little of {have}, so every replica holds all; "
            f"any one of them can go on alone",
        )
    if HALF * (most + 2 * moments) <= free:
        return Holding(
            "mirrored",
            f"two copies of {units.size(moments)} of moments fit in {have}, so two replicas hold each; a replica that "
            f"dies costs one step",
        )
    return Holding(
        "sharded",
        f"{replicas} replicas leave no room for a second copy of {units.size(moments)} of moments in {have}, so one "
        f"holds each; a replica that dies costs the steps since the newest checkpoint",
    )
