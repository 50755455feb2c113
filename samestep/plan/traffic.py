"""How many bytes each replica sends, exactly as the wire counts them: payload only. Pure arithmetic."""

from collections.abc import Sequence
from typing import NamedTuple

from samestep.sync import tree
from samestep.sync.legs import Legs, buckets
from samestep.sync.share import holders
from samestep.sync.slices import Layout
from samestep.wire.formats import BYTES, EXACT, Formats, blocks, of_sums, of_weights

WORD = 8  # bytes of a number that replicas tell each other
READY = 1  # byte of the barrier before a commit
COMPARED = 2  # words about a lane that is computed twice


class Division(NamedTuple):
    """What is shared by whom. units: leaves of the tree, lanes or islands. copies: replicas that keep each moment."""

    layout: Layout
    units: int
    replicas: int
    copies: int = 1
    formats: Formats = EXACT


def step(division: Division, rank: int, compared: bool = False) -> int:
    """Bytes of a step of the strategy `exact`. compared: one of its lanes is computed twice."""
    everything = range(division.layout.buckets)
    extra = COMPARED if compared else 0
    sent = sums(division, rank, everything) + weights(division, rank, everything)
    return sent + words(division, division.units + extra)


def fast(division: Division) -> int:
    """Bytes of a step of the strategy `fast`: a ring's share of each bucket."""
    found, size = division.layout, division.replicas
    ring = (2 * 4 * found.bucket_region(b).size * (size - 1) // size for b in range(found.buckets))
    return sum(ring) + words(division, division.units)


def leg(division: Division, rank: int, legs: Legs, fragments: int, lanes: int, number: int) -> list[int]:
    """Bytes in each step of the leg of `diloco` that step `number` (from 0) is in.

    Sums are counted where they set off; with an overlap those that find the window full go later, with the meeting.
    """
    end = legs.end(number)
    first = number - number % legs.length
    meeting = buckets(legs.fragment(number), fragments, division.layout.buckets)
    found = [sums(division, rank, meeting) if legs.leaves(at) else 0 for at in range(first, end)]
    told = (end - first) * (lanes + division.units)
    found[-1] += weights(division, rank, meeting) + words(division, told)
    return found


def sums(division: Division, rank: int, buckets: Sequence[int]) -> int:
    """Partial sums of these buckets for their owners, and what the scales follow from, for everybody."""
    found, size, format = division.layout, division.replicas, division.formats.sums
    span, peers = tree.spans(division.units, size)[rank], [peer for peer in range(size) if peer != rank]
    owned = [found.owned(bucket, peer, size).size for bucket in buckets for peer in peers]
    if format in BYTES:
        return len(tree.parts(division.units, span)) * sum(of_sums(format, count, 1) for count in owned)
    scales = sum(blocks(found.bucket_region(bucket).size) for bucket in buckets)
    return len(peers) * scales + sum(of_sums(format, count, len(span)) for count in owned)


def weights(division: Division, rank: int, buckets: Sequence[int]) -> int:
    """New weights of what this replica owns; those that make the same update get the gradient in their place."""
    size = division.replicas
    mirrors = len(holders(rank, size, division.copies)) - 1
    owned = [division.layout.owned(bucket, rank, size).size for bucket in buckets]
    told = sum(of_weights(division.formats.weights, count) for count in owned)
    return mirrors * 4 * sum(owned) + (size - 1 - mirrors) * told


def words(division: Division, losses: int) -> int:
    """What replicas tell each other between the sums and the update, and that they are ready. losses: other words are
    one a replica, a slice and a parameter, and a wish.
    """
    found = division.layout
    count = division.replicas + losses + len(found.pieces) + len(found.regions) + 1
    return (division.replicas - 1) * (WORD * count + READY)
