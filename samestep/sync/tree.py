"""The fixed binary tree in which lane gradients are added. Pure functions of integers.

A *lane* is one of the `lanes` equal shares into which a recipe cuts the work of a step. Lanes are the
leaves of the tree; replicas carry spans of lanes. The tree depends on the number of lanes only, so the
sum has the same bits whoever computes which part of it:

    7 lanes:  ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + g6)

A node splits at the largest power of two below its width, so a missing right child passes the left one up.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from samestep.errors import RecipeError

T = TypeVar("T")

IDLE_FOR_WHOLE_SUBTREES = 1 / 16  # longer spans are accepted up to this share, where they save partial sums


class Node(NamedTuple):
    """The subtree over lanes start .. stop - 1."""

    start: int
    stop: int

    def children(self) -> tuple["Node", "Node"]:
        width = self.stop - self.start
        middle = self.start + (1 << ((width - 1).bit_length() - 1))
        return Node(self.start, middle), Node(middle, self.stop)


def spans(lanes: int, replicas: int) -> list[range]:
    """The contiguous lanes of each replica: as even as can be, on whole subtrees where that idles nobody for long."""
    if not 1 <= replicas <= lanes:
        raise RecipeError(f"{replicas} replicas cannot share {lanes} lanes; take fewer replicas or more lanes")
    granule = _granule(lanes, replicas)
    units = -(-lanes // granule)
    edges = [min(lanes, granule * (units * r // replicas)) for r in range(replicas + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def _granule(lanes: int, replicas: int) -> int:
    longest = -(-lanes // replicas) * (1 + IDLE_FOR_WHOLE_SUBTREES)
    granule = 1
    while True:
        units = -(-lanes // (2 * granule))
        if units < replicas or -(-units // replicas) * 2 * granule > longest:
            return granule
        granule *= 2


def parts(lanes: int, span: range) -> list[Node]:
    """The largest subtrees inside a span, left to right: the partial sums that its replica sends."""
    return _inside(Node(0, lanes), span)


def _inside(node: Node, span: range) -> list[Node]:
    if node.stop <= span.start or span.stop <= node.start:
        return []
    if span.start <= node.start and node.stop <= span.stop:
        return [node]
    left, right = node.children()
    return _inside(left, span) + _inside(right, span)


def merges(node: Node) -> list[int]:
    """After each lane of a subtree, how often the two topmost partial sums are added.

    Adding up a subtree lane by lane needs a stack no deeper than log2(lanes) + 1, as in a binary counter.
    """
    if node.stop - node.start == 1:
        return [0]
    left, right = node.children()
    counts = merges(left) + merges(right)
    counts[-1] += 1
    return counts


def fold(node: Node, known: Mapping[Node, T], add: Callable[[T, T], T]) -> T:
    """The value of a node from those of known subtrees that cover it, added in the tree's order."""
    if node in known:
        return known[node]
    left, right = node.children()
    return add(fold(left, known, add), fold(right, known, add))


def total(values: Sequence[float]) -> float:
    """The sum of one number a lane, in the tree's order."""
    known = {Node(i, i + 1): value for i, value in enumerate(values)}
    return fold(Node(0, len(values)), known, lambda left, right: left + right)
