"""Which lane is computed twice, and by whom: the only check that sees wrong arithmetic. Pure functions of numbers.

A replica whose processor spoils a share f of the lanes that it computes is seen, of W replicas with L lanes, in a step
that is looked at with odds of about 2 f / W: the lane is one of its own in 1 / W of the draws, and in as many it is the
one that computes the lane again.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple


class Again(NamedTuple):
    """A lane, the rank that has it in this step, and the rank that computes it once more."""

    lane: int
    carrier: int
    witness: int


def again(step: int, every: int, spans: Sequence[range]) -> Again | None:
    """What is computed twice in the step after `step` committed ones; each `every`-th has something, 0: none does.

    spans: the lanes of each rank. The witness is as far from the carrier as it can be, so that where both have to go
    the copies of what they keep do not all go with them. One that is alone is its own witness.
    """
    if not every or step % every:
        return None
    lane, size = random.Random(step).randrange(spans[-1].stop), len(spans)
    carrier = next(rank for rank, span in enumerate(spans) if lane in span)
    return Again(lane, carrier, (carrier + size // 2) % size)
