"""How long a step takes under each strategy and wire format, from what a pilot has measured. Pure arithmetic.

The time of an exchange is read off a table of sizes that was measured between the replicas themselves: a latency and a
bandwidth fitted to it err by 18 to 38 % in the middle of the range (shared memory, sockets and NCCL alike).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Table = Sequence[tuple[int, float]]  # bytes to each peer -> seconds until all replicas have all; ascending


@dataclass(frozen=True)
class Measured:
    """By one pilot, with all replicas at work: they share processors, memory and links as they will in the run.

    forward, backward: seconds of a micro-batch. update: seconds an element, of the optimizer. pass_: seconds an
    element, of adding one float32 tensor to another. coding: by format, seconds an element, of rounding a sum to it.
    """

    replicas: int
    forward: float
    backward: float
    update: float
    pass_: float
    coding: Mapping[str, float]
    exchange: Table


@dataclass(frozen=True)
class Work:
    """What a recipe asks for. lanes: of the replica that has most of them."""

    elements: int
    buckets: int
    lanes: int
    micro_batches: int  # a lane


class Bytes(NamedTuple):
    """That a replica sends to each peer: of sums, of new weights; in a step, or at a meeting of islands."""

    sums: int
    weights: int


def moved(table: Table, size: float) -> float:
    """Seconds of an exchange of `size` bytes to each peer: between two measured sizes on the line between them, beyond
    the last on the line through the last two.
    """
    if len(table) == 1 or size <= table[0][0]:
        return table[0][1]
    pairs = itertools.pairwise(table)
    (low, before), (high, after) = next((pair for pair in pairs if size <= pair[1][0]), (table[-2], table[-1]))
    return before + (after - before) * (size - low) / (high - low)


def exact(measured: Measured, work: Work, sent: Bytes, wire: str, weights: str) -> dict[str, float]:
    """Seconds of a step by part. The sums of all buckets but the last travel behind the last lane's backward."""
    computed = work.lanes * work.micro_batches
    sums = moved(measured.exchange, sent.sums)
    hidden = measured.backward * (1 - 1 / work.buckets)
    last = moved(measured.exchange, sent.sums / work.buckets)
    share = work.elements / measured.replicas
    return {
        "forward": computed * measured.forward,
        "backward": computed * measured.backward,
        "sums": max(sums - hidden, last) if measured.replicas > 1 else 0.0,
        "coding": _coding(measured, work.elements * work.lanes, wire) + _coding(measured, share, weights),
        "update": 2 * share * measured.update,
        "weights": moved(measured.exchange, sent.weights) if measured.replicas > 1 else 0.0,
        "passes": (work.lanes + 3) * work.elements * measured.pass_,
        "words": 3 * measured.exchange[0][1] if measured.replicas > 1 else 0.0,
    }


def islands(
    measured: Measured, work: Work, sent: Bytes, wire: str, weights: str, every: int, overlap: int, carried: int
) -> dict[str, float]:
    """Seconds of a step by part, on the average over the steps between two meetings. carried: islands of a replica."""
    computed = work.lanes * work.micro_batches
    sums = moved(measured.exchange, sent.sums)
    behind = overlap * computed * (measured.forward + measured.backward)
    meeting = {
        "sums": max(sums - behind, moved(measured.exchange, sent.sums / work.buckets)),
        "coding": _coding(measured, work.elements * carried, wire)
        + _coding(measured, work.elements / measured.replicas, weights),
        "weights": moved(measured.exchange, sent.weights),
        "words": 3 * measured.exchange[0][1],
    }
    return {
        "forward": computed * measured.forward,
        "backward": computed * measured.backward,
        "update": carried * work.elements * measured.update,
        "passes": carried * (work.lanes / carried + 3) * work.elements * measured.pass_,
        **{part: seconds / every if measured.replicas > 1 else 0.0 for part, seconds in meeting.items()},
    }


def _coding(measured: Measured, elements: float, format: str) -> float:
    return elements * measured.coding.get(format, 0.0)
