"""What a strategy is: who adds which gradients, who updates which slices, what is sent when."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from samestep.sync.share import Share
from samestep.sync.slices import Region

News = Mapping[int, Sequence[tuple[Region, Tensor]]]  # by bucket: regions, and what was told of them
Propose = Callable[[int, Tensor], None]  # (bucket, out): write the new weights of its owned region to out


class Exchange(Protocol):
    """One replica's side of a strategy in one generation. All replicas call the methods in one order."""

    @property
    def share(self) -> Share:
        """What this replica computes, updates and keeps."""

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        """A bucket of this replica's sums is complete: start its reduction. Called in backward."""

    def finish(self) -> None:
        """Complete all reductions: the owned regions of the first buffer hold the step's gradient."""

    def gather(self, step: int, propose: Propose, buffers: Sequence[Tensor], buckets: Sequence[int]) -> News:
        """Bring into the first buffer, for these buckets, the gradient of the regions held. Of all others the new
        weights are there too, but for buckets that are returned: theirs lie elsewhere, to be read until `release`.
        """

    def release(self) -> None:
        """What `gather` has returned is not read any more. Until then a peer that ends is one that was lost."""
