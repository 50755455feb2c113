"""The most memory that a replica on processors has resident, by what it is for. Pure arithmetic, bytes.

Flat float32 buffers as in sync/ and replica/, and what a micro-batch holds (kept.py). glibc gives nothing back while a
replica runs (launch/child.py), so what was once needed stays. There are three kinds of memory, as replicas of
one host see each other's:

private  of one replica alone
shared   what others read: each replica has its own part, and sees what it reads of the others'; the machine has it once
mapped   of files: libraries, and frozen weights as they are stored; the machine has them once
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from samestep.plan import kept
from samestep.plan.facts import Facts
from samestep.plan.kept import Micro
from samestep.sync import tree
from samestep.sync.share import buffers, holders, turns
from samestep.sync.slices import Layout
from samestep.sync.tree import Node
from samestep.wire.formats import EXACT, Formats, of_sums

# Of what a micro-batch holds: gaps between blocks that the heap cannot use again. Measured with one replica: 0.23 at a
# model of 13.8 M parameters and 1x256, 0.24 at 2x256, 0.33 at 135 M and 1x128.
SPLINTERS = 0.25
WINDOW = 2  # buckets on their way at once, see sync/exact.py

Parts = dict[str, float]


@dataclass(frozen=True)
class Program:
    """What a process takes before there is a model: Python, torch and what the recipe imports."""

    private: float
    mapped: float


BARE = Program(172e6, 106e6)  # measured with Python 3.11 and torch 2.13 on a CPU; for where no pilot has


@dataclass(frozen=True)
class Held:
    """What is trained, and by whom it is held. lanes: of a step. accumulate: micro-batches of a lane. moments: tensors
    a weight. copies: replicas that hold each. islands: of diloco; 0: another strategy. saves: whether a checkpoint is
    written in the run. frozen: bytes of weights that are not trained; mapped: of these, as they lie in a file.
    """

    layout: Layout
    lanes: int
    accumulate: int
    moments: int
    copies: int = 1
    strategy: str = "exact"
    formats: Formats = EXACT
    islands: int = 0
    saves: bool = False
    frozen: float = 0.0
    mapped: float = 0.0

    @property
    def flat(self) -> float:
        """Bytes of one float32 buffer for all that is trained."""
        return 4.0 * self.layout.total

    @property
    def units(self) -> int:
        return self.islands or self.lanes


@dataclass(frozen=True)
class Resident:
    """Of one replica: private, shared and mapped by kind; seen: bytes of what others share."""

    private: Parts
    shared: Parts
    mapped: Parts
    seen: float

    @property
    def bytes(self) -> float:
        """What its process shows as resident, which counts what it sees of the others."""
        return sum(self.own.values()) + sum(self.mapped.values()) + self.seen

    @property
    def own(self) -> Parts:
        return self.private | self.shared


def replica(program: Program, facts: Facts | None, micro: Micro, held: Held, replicas: int, rank: int) -> Resident:
    """Of one of `replicas` on one host. facts: of the model; None: it is not known what a micro-batch takes."""
    together = replicas > 1 and held.strategy != "fast"
    sums, news = _sums(held, replicas, rank, together), _news(held, replicas, rank) if together else 0.0
    private = {"program": program.private, "weights": held.flat, "frozen weights": held.frozen - held.mapped}
    private |= _states(held, replicas, rank) | {"gradients": sums["private"]} | _work(facts, micro)
    private["start"] = _start(held, private)
    shared = {"gradients to share": sums["shared"], "new weights": news} if together else {}
    mapped = {"libraries": program.mapped, "stored weights": held.mapped}
    return Resident(_some(private), _some(shared), _some(mapped), _seen(held, replicas, rank) if together else 0.0)


def machine(program: Program, facts: Facts | None, micro: Micro, held: Held, replicas: int) -> float:
    """What all replicas of one host need together, where each page counts once."""
    each = [replica(program, facts, micro, held, replicas, rank) for rank in range(replicas)]
    return sum(sum(one.own.values()) for one in each) + sum(each[0].mapped.values())


def _some(parts: Mapping[str, float]) -> Parts:
    return {name: size for name, size in parts.items() if size}


def _work(facts: Facts | None, micro: Micro) -> Parts:
    if facts is None:
        return {}
    waiting, room, passing = (of(facts, micro) for of in (kept.activations, kept.loss, kept.passing))
    return {"activations": waiting + passing, "logits": room, "splinters": SPLINTERS * (waiting + passing)}


def _start(held: Held, private: Parts) -> float:
    """New weights lie beside the flat buffer until they are copied to it; the heap uses their place for what comes
    later, if there is as much.
    """
    later = sum(size for name, size in private.items() if name not in ("program", "weights", "frozen weights"))
    return max(0.0, held.flat - later)


def _owned(held: Held, replicas: int, owner: int) -> float:
    """Bytes of what one replica owns of a flat buffer."""
    return 4.0 * sum(held.layout.owned(bucket, owner, replicas).size for bucket in range(held.layout.buckets))


def _held(held: Held, replicas: int, rank: int) -> float:
    """Bytes of a flat buffer whose moments a replica holds."""
    if held.strategy == "fast":
        return held.flat
    owners = [owner for owner in range(replicas) if rank in holders(owner, replicas, held.copies)]
    return sum(_owned(held, replicas, owner) for owner in owners)


def _states(held: Held, replicas: int, rank: int) -> Parts:
    masters = held.formats.weights != EXACT.weights
    mine, owned = _held(held, replicas, rank), _owned(held, replicas, rank)
    carried, rounded = len(_span(held, replicas, rank)), held.formats.sums != EXACT.sums
    if held.islands:  # of each island its own weights, moments and what was rounded off; one moment of them all
        parts = {"moments": (1 + masters) * mine, "islands": carried * (1 + held.moments + rounded) * held.flat}
    else:
        parts = {"moments": (held.moments + masters) * mine, "rounded off": carried * rounded * held.flat}
    saved = (1 + (1 if held.islands else held.moments) + masters) * owned + parts.get("islands", 0.0)
    return parts | {"checkpoint": saved if held.saves else 0.0}


def _span(held: Held, replicas: int, rank: int) -> range:
    return tree.spans(held.units, replicas)[rank]


def _parts(held: Held, replicas: int, rank: int) -> list[Node]:
    """The partial sums that a replica sends."""
    return tree.parts(held.units, _span(held, replicas, rank))


def _depth(nodes: list[Node], accumulate: int) -> int:
    return buffers(turns([tree.merges(node) for node in nodes]), accumulate)


def _sums(held: Held, replicas: int, rank: int, together: bool) -> dict[str, float]:
    """Bytes of the buffers that gradients are added up in: those that others read, and others."""
    span, parts = _span(held, replicas, rank), _parts(held, replicas, rank)
    if held.strategy == "fast":
        return {"private": held.flat * _depth([Node(span.start, span.stop)], held.accumulate), "shared": 0.0}
    if held.islands:
        lanes = tree.spans(held.lanes, held.islands)[span.start : span.stop]
        inner = held.flat * _depth([Node(each.start, each.stop) for each in lanes], held.accumulate)
        outer = held.flat * len(parts)
        return {"private": inner + (0.0 if together else outer), "shared": outer if together else 0.0}
    if held.formats.sums != EXACT.sums:
        return {"private": held.flat * (1 + len(span)), "shared": _packed(held, len(span), len(parts))}
    depth = held.flat * _depth(parts, held.accumulate)
    return {"private": 0.0 if together else depth, "shared": depth if together else 0.0}


def _packed(held: Held, lanes: int, parts: int) -> float:
    """Bytes of sums in few bits, as they are sent."""
    if held.formats.sums == "bfloat16":
        return parts * held.flat / 2
    return float(WINDOW * of_sums(held.formats.sums, held.layout.bucket_region(0).size, lanes))


def _news(held: Held, replicas: int, rank: int) -> float:
    """Bytes of new weights that others read: those that are told in few bits are packed for each exchange."""
    if held.formats.rounded:
        bucket = 4.0 * max(held.layout.owned(b, rank, replicas).size for b in range(held.layout.buckets))
        return WINDOW * bucket
    return _owned(held, replicas, rank)


def _seen(held: Held, replicas: int, rank: int) -> float:
    """Bytes of the others' memory that a replica reads: partial sums of what it owns, and news or gradients of what it
    does not.
    """
    size = partial(_owned, held, replicas)
    peers = [peer for peer in range(replicas) if peer != rank]
    if held.formats.rounded:
        return sum(_packed(held, len(_span(held, replicas, p)), len(_parts(held, replicas, p))) for p in peers)
    sums = sum(len(_parts(held, replicas, peer)) for peer in peers) * size(rank)
    return sums + sum(size(peer) for peer in peers)
