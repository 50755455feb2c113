"""How many bytes each replica sends, exactly as the wire counts them: payload only. Pure arithmetic."""

from collections.abc import Sequence
from typing import NamedTuple

from samestep.sync import relays, tree
from samestep.sync.legs import Legs, buckets
from samestep.sync.share import holders
from samestep.sync.slices import Layout
from samestep.wire.formats import BYTES, EXACT, Formats, blocks, of_sums, of_weights

WORD = 8  # bytes of a number that replicas tell each other
READY = 1  # byte of the barrier before a commit
COMPARED = 2  # words about a lane that is computed twice


class Division(NamedTuple):
    """What is shared by whom. units: leaves of the tree, lanes or islands. copies: replicas that keep each moment.

    hosts: by rank, the number of its host; empty: all are on one.
    """

    layout: Layout
    units: int
    replicas: int
    copies: int = 1
    formats: Formats = EXACT
    hosts: tuple[int, ...] = ()

    @property
    def passes_on(self) -> bool:
        """Whether replicas of a host send for each other."""
        return self.formats == EXACT and relays.several(self.hosts)


def step(division: Division, rank: int, compared: bool = False) -> int:
    """Bytes of a step of the strategy `exact`. compared: one of its lanes is computed twice."""
    return sum(to(division, rank, peer, compared) for peer in _peers(division, rank))


def between(division: Division, rank: int, compared: bool = False) -> int:
    """Those of a step that go to other hosts."""
    peers = relays.elsewhere(division.hosts, division.hosts[rank]) if division.hosts else []
    return sum(to(division, rank, peer, compared) for peer in peers)


def to(division: Division, rank: int, peer: int, compared: bool = False) -> int:
    """Those of a step that go to one peer."""
    everything = range(division.layout.buckets)
    sent = _sums(division, rank, peer, everything) + _weights(division, rank, peer, everything)
    return sent + _words(division, division.units + (COMPARED if compared else 0))


def fast(division: Division) -> int:
    """Bytes of a step of the strategy `fast`: a ring's share of each bucket."""
    found, size = division.layout, division.replicas
    ring = (2 * 4 * found.bucket_region(b).size * (size - 1) // size for b in range(found.buckets))
    return sum(ring) + words(division, division.units)


def leg(division: Division, rank: int, legs: Legs, fragments: int, lanes: int, number: int) -> list[int]:
    """Bytes in each step of the leg of `diloco` that step `number` (from 0) is in.

    Sums are counted where they set off; with an overlap those that find the window full go later, with the meeting, and
    so do those that are passed on to other hosts.
    """
    end = legs.end(number)
    first = max(0, legs.since(end))
    meeting = buckets(legs.fragment(number), fragments, division.layout.buckets)
    found = [sums(division, rank, meeting) if legs.leaves(at) else 0 for at in range(first, end)]
    told = (end - first) * (lanes + division.units)
    found[-1] += weights(division, rank, meeting) + words(division, told)
    return found


def sums(division: Division, rank: int, buckets: Sequence[int]) -> int:
    """Partial sums of these buckets for their owners, and what the scales follow from, for everybody."""
    return sum(_sums(division, rank, peer, buckets) for peer in _peers(division, rank))


def weights(division: Division, rank: int, buckets: Sequence[int]) -> int:
    """New weights of what this replica owns; those that make the same update get the gradient in their place."""
    return sum(_weights(division, rank, peer, buckets) for peer in _peers(division, rank))


def words(division: Division, losses: int) -> int:
    """What replicas tell each other between the sums and the update, and that they are ready. losses: other words are
    one a replica, a slice and a parameter, and a wish.
    """
    return (division.replicas - 1) * _words(division, losses)


def _peers(division: Division, rank: int) -> list[int]:
    return [peer for peer in range(division.replicas) if peer != rank]


def _sums(division: Division, rank: int, peer: int, buckets: Sequence[int]) -> int:
    found, size, format = division.layout, division.replicas, division.formats.sums
    span = tree.spans(division.units, size)[rank]
    if division.passes_on:
        return _passed_sums(division, rank, peer, len(tree.parts(division.units, span)), buckets)
    owned = [found.owned(bucket, peer, size).size for bucket in buckets]
    if format in BYTES:
        return len(tree.parts(division.units, span)) * sum(of_sums(format, count, 1) for count in owned)
    scales = sum(blocks(found.bucket_region(bucket).size) for bucket in buckets)
    return scales + sum(of_sums(format, count, len(span)) for count in owned)


def _passed_sums(division: Division, rank: int, peer: int, parts: int, buckets: Sequence[int]) -> int:
    """parts: partial sums of this replica alone."""
    hosts = division.hosts
    if hosts[peer] == hosts[rank]:
        return 4 * parts * sum(_owned(division, owner, buckets) for owner in relays.collected(hosts, peer))
    if relays.collector(hosts, hosts[rank], peer) != rank:
        return 0
    return 4 * len(relays.nodes(division.units, hosts, hosts[rank])) * _owned(division, peer, buckets)


def _weights(division: Division, rank: int, peer: int, buckets: Sequence[int]) -> int:
    if division.passes_on:
        return 4 * sum(_owned(division, owner, buckets) for owner in _news(division, rank, peer))
    owned = [division.layout.owned(bucket, rank, division.replicas).size for bucket in buckets]
    if peer in holders(rank, division.replicas, division.copies):
        return 4 * sum(owned)
    return sum(of_weights(division.formats.weights, count) for count in owned)


def _news(division: Division, rank: int, peer: int) -> list[int]:
    """The owners of whom a peer hears from this replica what is new."""
    kept = [holders(owner, division.replicas, division.copies) for owner in range(division.replicas)]
    own = [rank] if peer in relays.told(division.hosts, rank, kept[rank]) else []
    return own + [o for o, held in enumerate(kept) if relays.relays(division.hosts, o, held).get(peer) == rank]


def _owned(division: Division, owner: int, buckets: Sequence[int]) -> int:
    return sum(division.layout.owned(bucket, owner, division.replicas).size for bucket in buckets)


def _words(division: Division, losses: int) -> int:
    found = division.layout
    return WORD * (division.replicas + losses + len(found.pieces) + len(found.regions) + 1) + READY
