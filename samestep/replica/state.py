"""The state of training that one replica holds: all weights, and the moments of the slices that it owns."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from samestep.model import optim
from samestep.sync.flat import cut, flatten
from samestep.sync.slices import Layout, Region


class _Owned(NamedTuple):
    """A piece that this replica updates."""

    number: int  # of its slice
    parameter: int
    place: slice  # in the flat buffers
    kept: list[Tensor]  # its moments


class State:
    """Weights in one flat float32 buffer in which the module's parameters live; moments of owned regions only."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        layout: Layout,
        owned: Sequence[Region],
        rule: optim.Rule,
    ) -> None:
        self.weights = flatten(parameters, layout)
        self.updates = [0] * len(parameters)  # made to each parameter
        self._rule, self._layout, self._regions = rule, layout, owned
        self._decayed = [optim.decays(p) for p in parameters]
        size = sum(region.size for region in owned)
        self.moments = [torch.zeros(size, device=self.weights.device) for _ in range(rule.moments)]
        self._owned = [list(pieces) for pieces in self._pieces()]

    def norms(self, gradient: Tensor) -> Tensor:
        """float64 [slices]: the sum of squares of each owned slice of the gradient, zero for the others."""
        result = torch.zeros(len(self._layout.pieces), dtype=torch.float64)
        owned = [piece for pieces in self._owned for piece in pieces]
        if owned:
            squares = torch.stack([torch.linalg.vector_norm(gradient[p.place]) for p in owned]).double().square().cpu()
            result.index_add_(0, torch.tensor([p.number for p in owned]), squares)
        return result

    def propose(self, bucket: int, out: Tensor, gradient: Tensor, rate: float, present: Sequence[bool]) -> None:
        """Write the new weights of the owned region of a bucket to `out`; change nothing else."""
        start = self._regions[bucket].start
        for piece in self._owned[bucket]:
            old, new = self.weights[piece.place], out[piece.place.start - start : piece.place.stop - start]
            if present[piece.parameter]:
                rates = self._rates(piece.parameter, rate)
                optim.propose(self._rule, old, gradient[piece.place], piece.kept, new, rates)
            else:
                new.copy_(old)

    def commit(self, gathered: Tensor, rate: float, present: Sequence[bool]) -> None:
        """Update what is owned in place (`gathered` holds its gradient there) and take the rest from `gathered`."""
        for bucket, region in enumerate(self._regions):
            for piece in self._owned[bucket]:
                if present[piece.parameter]:
                    rates = self._rates(piece.parameter, rate)
                    optim.commit(self._rule, self.weights[piece.place], gathered[piece.place], piece.kept, rates)
            whole = self._layout.bucket_region(bucket)
            for other in (Region(whole.start, region.start), Region(region.stop, whole.stop)):
                cut(self.weights, other).copy_(cut(gathered, other))
        self.updates = [count + there for count, there in zip(self.updates, present, strict=True)]

    def _rates(self, parameter: int, learning_rate: float) -> optim.Rates:
        return optim.Rates(learning_rate, self._decayed[parameter], self.updates[parameter] + 1)

    def _pieces(self) -> Iterator[Iterator[_Owned]]:
        start = 0
        for region in self._regions:
            yield self._pieces_of(region, start)
            start += region.size

    def _pieces_of(self, region: Region, moments_start: int) -> Iterator[_Owned]:
        for index, piece in self._layout.pieces_in(region):
            here = moments_start - region.start
            kept = [m[here + piece.start : here + piece.stop] for m in self.moments]
            yield _Owned(index, piece.parameter, slice(piece.start, piece.stop), kept)
