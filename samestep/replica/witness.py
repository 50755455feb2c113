"""One lane of another replica is computed once more, and the gradients are compared bit for bit."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samestep.errors import Corrupted
from samestep.replica.seal import bits
from samestep.sync.again import Again, again

CARRIED, WITNESSED = 0, 1


class Witness:
    """Sums over the bits of a lane's gradients while backward makes them; they wrap, so that their order is free.

    every: steps from one lane that is computed twice to the next; 0: none is. spans: the lanes of each rank.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], every: int, spans: Sequence[range], rank: int) -> None:
        self._every, self._spans, self._rank = every, spans, rank
        self._hooks = [p.register_hook(self._add) for p in parameters] if every else []  # type: ignore[no-untyped-call]
        self._sums = torch.zeros(2, dtype=torch.int64, device=parameters[0].device)
        self._into: int | None = None

    def more(self, step: int) -> list[int]:
        """The lanes that this replica computes after its own, for comparison only."""
        due = self._due(step)
        return [due.lane] if due and due.witness == self._rank else []

    def listen(self, step: int, place: int) -> None:
        """The gradients that come now are those of this replica's lane number `place`."""
        due, mine = self._due(step), self._spans[self._rank]
        carried = due is not None and place < len(mine) and mine[place] == due.lane
        self._into = CARRIED if carried else WITNESSED if place >= len(mine) else None

    def claims(self, step: int) -> Tensor:
        """int64[2], what was summed up in this step; int64[0] where nothing is compared."""
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        return (sums if self._due(step) else sums[:0]).cpu()

    def check(self, step: int, claims: Sequence[Sequence[int]]) -> None:
        """claims: of each rank. Corrupted on both replicas that had the lane where their gradients differ."""
        due = self._due(step)
        differ = due and claims[due.carrier][CARRIED] != claims[due.witness][WITNESSED]
        if due and differ and self._rank in (due.carrier, due.witness):
            raise _differ(step, due)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _due(self, step: int) -> Again | None:
        return again(step, self._every, self._spans)

    def _add(self, gradient: Tensor) -> None:
        if self._into is not None:
            self._sums[self._into] += bits(gradient)


def _differ(step: int, due: Again) -> Corrupted:
    whose = "twice by this replica" if due.carrier == due.witness else f"by ranks {due.carrier} and {due.witness}"
    return Corrupted(
        f"the gradient of lane {due.lane} after step {step}, computed {whose}, has two values, and nobody can tell "
        f"which is right; nothing of it was applied; look at the processor of this host if it is named again"
    )
