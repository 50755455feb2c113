"""What was rounded off a unit's gradient in one step is added to it in the next, so that nothing is lost for good.

Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., arXiv 1901.09847), of each lane or island by itself:
then it does not depend on the replicas. It changes at a commit only; a step that is abandoned leaves it as it was.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from samestep.sync.flat import cut
from samestep.sync.slices import Layout, Region
from samestep.sync.tree import Node


class Feedback:
    """resting: by unit. sums: by buffer, the leaf of the tree that it holds; see Share."""

    def __init__(self, layout: Layout, resting: Mapping[int, Tensor], sums: Mapping[int, Node]) -> None:
        self._layout = layout
        self._resting = {at: resting[node.start] for at, node in sums.items()} if resting else {}

    def recall(self, bucket: int, buffers: Sequence[Tensor]) -> None:
        """Add it to the gradients in the buffers."""
        region = self._layout.bucket_region(bucket)
        for at, resting in self._resting.items():
            cut(buffers[at], region).add_(cut(resting, region))

    def keep(self, buffers: Sequence[Tensor], present: Sequence[bool], buckets: Sequence[int]) -> None:
        """Take over what the sums of these buckets have left in the buffers; but where a parameter had no gradient and
        was left alone, nothing of it was used up.
        """
        for region in self._reached(present, buckets) if self._resting else ():
            for at, resting in self._resting.items():
                cut(resting, region).copy_(cut(buffers[at], region))

    def _reached(self, present: Sequence[bool], buckets: Sequence[int]) -> list[Region]:
        """The parts in these buckets, which follow each other, of the parameters that had a gradient."""
        whole = [self._layout.bucket_region(bucket) for bucket in buckets]
        found = [
            Region(max(region.start, whole[0].start), min(region.stop, whole[-1].stop))
            for region, there in zip(self._layout.regions, present, strict=True)
            if there and whole
        ]
        return [region for region in found if region.size > 0]
