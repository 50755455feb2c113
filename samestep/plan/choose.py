"""Which strategy and wire format to take on a network that was measured, and what the loss may pay for it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from samestep.plan import traffic
from samestep.plan.timing import Bytes, Measured, Work, exact, islands
from samestep.plan.traffic import Division
from samestep.sync import tree
from samestep.sync.slices import Layout
from samestep.wire.formats import Formats

NEAR = 0.05  # a candidate that is slower by less than this share is taken where the loss may pay less


class Candidate(NamedTuple):
    """loss: what it may cost the loss, with the source of that."""

    strategy: str
    wire: str
    loss: str


# In the order of what the loss may pay.
CANDIDATES = (
    Candidate("exact", "float32", "nothing: the sums of plain data parallelism"),
    Candidate("exact", "bfloat16", "next to nothing: what is rounded off is added in the next step"),
    Candidate("exact", "int8", "none seen by ZeRO++ (arXiv 2306.10209, int8 weights, int4 gradients)"),
    Candidate("exact", "int4", "negligible up to 6.7 B parameters in SDP4Bit (arXiv 2410.15526)"),
    Candidate(
        "diloco", "float32", "as good as synchronous with 8 islands in DiLoCo (arXiv 2311.08105); more at small scale"
    ),
    Candidate(
        "diloco", "int8", "as diloco in float32: int8 was used over a billion-scale run (PRIME, arXiv 2412.01152)"
    ),
    Candidate("diloco", "int4", "none seen beyond diloco's own in Streaming DiLoCo (arXiv 2501.18512, 4-bit)"),
)


@dataclass(frozen=True)
class Shape:
    """What of a recipe decides the time of a step. every, overlap, islands: of diloco, which is out of question where
    islands is 0.
    """

    lanes: int
    micro_batches: int
    islands: int
    every: int
    overlap: int


@dataclass(frozen=True)
class Prediction:
    """parts: seconds of a step, by what they are spent on."""

    candidate: Candidate
    seconds: float
    bytes_sent: float  # a step, by the replica that sends most
    parts: dict[str, float]


def predictions(measured: Measured, layout: Layout, shape: Shape) -> list[Prediction]:
    """Of each candidate that the recipe admits, in the order of CANDIDATES."""
    known = [each for each in CANDIDATES if each.strategy != "diloco" or measured.replicas <= shape.islands]
    return [_predicted(each, measured, layout, shape) for each in known]


def chosen(found: Sequence[Prediction]) -> tuple[Prediction, str]:
    """The one to take, and a sentence of reason."""
    best = min(found, key=lambda each: each.seconds)
    taken = next(each for each in found if each.seconds <= (1 + NEAR) * best.seconds)
    bare = found[0]
    if taken is bare:
        return taken, f"a step takes {taken.seconds:.3f} s, and no other format or strategy is {NEAR:.0%} faster"
    why = f"a step takes {taken.seconds:.3f} s where exact in float32 takes {bare.seconds:.3f} s"
    return taken, f"{why}; the loss may pay: {taken.candidate.loss}"


def _predicted(candidate: Candidate, measured: Measured, layout: Layout, shape: Shape) -> Prediction:
    units = shape.lanes if candidate.strategy == "exact" else shape.islands
    division = Division(layout, units, measured.replicas, formats=Formats(candidate.wire, candidate.wire))
    longest = max(len(span) for span in tree.spans(units, measured.replicas))
    work = Work(layout.total, layout.buckets, longest * (shape.lanes // units), shape.micro_batches)
    sent = _sent(division)
    peers = max(1, measured.replicas - 1)
    each = Bytes(sent.sums // peers, sent.weights // peers)
    if candidate.strategy == "exact":
        parts = exact(measured, work, each, candidate.wire, candidate.wire)
        often = 1.0
    else:
        wire = candidate.wire
        parts = islands(measured, work, each, wire, wire, shape.every, shape.overlap, longest)
        often = 1 / shape.every
    return Prediction(candidate, sum(parts.values()), often * (sent.sums + sent.weights), parts)


def _sent(division: Division) -> Bytes:
    """By the replica that sends most."""
    everything, ranks = range(division.layout.buckets), range(division.replicas)
    if division.replicas == 1:
        return Bytes(0, 0)
    return Bytes(
        max(traffic.sums(division, rank, everything) for rank in ranks),
        max(traffic.weights(division, rank, everything) for rank in ranks),
    )
