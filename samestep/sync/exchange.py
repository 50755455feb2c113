"""What a strategy is: who adds which gradients, who updates which slices, what is sent when."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from samestep.sync.accumulate import Turn
from samestep.sync.slices import Region

Propose = Callable[[int, Tensor], None]  # (bucket, out): write the new weights of its owned region to out


class Exchange(Protocol):
    """One replica's side of a strategy. All replicas call the methods in one order; a new one starts afresh."""

    @property
    def span(self) -> range:
        """The lanes of this replica."""

    def turns(self) -> list[Turn]:
        """How these lanes are added up; the first buffer will hold the step's gradient."""

    def owned(self, bucket: int) -> Region:
        """The region of a bucket that this replica updates."""

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        """A bucket of this replica's sums is complete: start its reduction. Called in backward."""

    def finish(self) -> None:
        """Complete all reductions: the owned regions of the first buffer hold the step's gradient."""

    def gather(self, step: int, propose: Propose, buffers: Sequence[Tensor]) -> None:
        """Bring the new weights of the regions that others own into the first buffer."""
