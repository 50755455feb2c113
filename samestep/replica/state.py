"""The state of training that one replica holds: all weights, and the moments of the slices that it owns.

An update is made twice: `propose` on copies, which gives the new weights and changes nothing, so that a step can be
abandoned until all replicas have it; then `commit` in place. The second costs less than keeping old values would,
which is two more arrays of the size of the owned weights.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from samestep.model import optim
from samestep.recover.shards import Part
from samestep.sync.flat import cut, flatten
from samestep.sync.slices import Layout, Piece, Region


class _Group(NamedTuple):
    """Pieces of one bucket that this replica updates, with or without weight decay."""

    decay: bool
    pieces: list[Piece]


class _Owned(NamedTuple):
    """A run of elements of one parameter that this replica updates: where it lies, and where in the moments."""

    parameter: int
    region: Region
    moments: slice


class State:
    """Weights in one flat float32 buffer in which the module's parameters live; moments of owned regions only."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], layout: Layout, owned: Sequence[Region], rule: optim.Rule
    ) -> None:
        self.weights = flatten(parameters, layout)
        self.updates = [0] * len(parameters)  # made to each parameter
        self._rule, self._layout, self._regions = rule, layout, owned
        self._decays = [optim.decays(p) for p in parameters]
        size = sum(region.size for region in owned)
        self.moments = [torch.zeros(size, device=self.weights.device) for _ in range(rule.moments)]
        self._starts = [sum(r.size for r in owned[:bucket]) for bucket in range(len(owned))]  # in the moments

    def norms(self, gradient: Tensor) -> Tensor:
        """float64 [slices]: the sum of squares of each owned slice of the gradient, zero for the others."""
        result = torch.zeros(len(self._layout.pieces), dtype=torch.float64)
        owned = [pair for region in self._regions for pair in self._layout.pieces_in(region)]
        if owned:
            norms = torch._foreach_norm([gradient[piece.start : piece.stop] for _, piece in owned])
            result.index_add_(0, torch.tensor([i for i, _ in owned]), torch.stack(norms).double().square().cpu())
        return result

    def propose(self, bucket: int, out: Tensor, gradient: Tensor, rate: float, present: Sequence[bool]) -> None:
        """Write the new weights of the owned region of a bucket to `out`; change nothing else."""
        region = self._regions[bucket]
        out.copy_(cut(self.weights, region))
        copies = [kept.clone() for kept in self._kept(bucket)]
        self._update(bucket, out, cut(gradient, region), copies, rate, present)

    def commit(self, gathered: Tensor, rate: float, present: Sequence[bool]) -> None:
        """Update what is owned in place (`gathered` holds its gradient there) and take the rest from `gathered`."""
        for bucket, region in enumerate(self._regions):
            weights, gradient = cut(self.weights, region), cut(gathered, region)
            self._update(bucket, weights, gradient, self._kept(bucket), rate, present)
            whole = self._layout.bucket_region(bucket)
            for other in (Region(whole.start, region.start), Region(region.stop, whole.stop)):
                cut(self.weights, other).copy_(cut(gathered, other))
        self.updates = [count + there for count, there in zip(self.updates, present, strict=True)]

    def kinds(self) -> list[str]:
        """What there is of each parameter: its weights and the optimizer's moments."""
        return ["weights", *(f"moment{i}" for i in range(len(self.moments)))]

    def snapshot(self, names: Sequence[str]) -> dict[Part, Tensor]:
        """Copies on the CPU of what is owned. names: of the parameters, in the order of their registration."""
        found = {}
        for owned in self._owned():
            held = [cut(self.weights, owned.region), *(moment[owned.moments] for moment in self.moments)]
            at = self._layout.regions[owned.parameter].start
            for kind, values in zip(self.kinds(), held, strict=True):
                part = Part(kind, names[owned.parameter], owned.region.start - at, owned.region.stop - at)
                found[part] = values.detach().cpu().clone()
        return found

    def restore(self, names: Sequence[str], parts: Iterable[tuple[Part, memoryview]], updates: Sequence[int]) -> None:
        """Take over all weights, and of the moments what is owned, from the float32 bytes of `parts`."""
        numbers = {name: number for number, name in enumerate(names)}
        owned = {number: list(group) for number, group in groupby(sorted(self._owned()), lambda o: o.parameter)}
        for part, data in parts:
            number, values = numbers[part.parameter], torch.frombuffer(data, dtype=torch.float32)
            at = self._layout.regions[number].start
            here = Region(at + part.start, at + part.stop)
            if part.kind == "weights":
                cut(self.weights, here).copy_(values)
            else:
                self._take(self.moments[self.kinds().index(part.kind) - 1], owned.get(number, []), here, values)
        self.updates = list(updates)

    @staticmethod
    def _take(moment: Tensor, owned: Sequence[_Owned], here: Region, values: Tensor) -> None:
        """Copy to `moment` those of the `values` of the region `here` that are owned."""
        for _, region, places in owned:
            start, stop = max(here.start, region.start), min(here.stop, region.stop)
            if start < stop:
                shift = places.start - region.start
                moment[start + shift : stop + shift].copy_(values[start - here.start : stop - here.start])

    def _owned(self) -> Iterator[_Owned]:
        for bucket, region in enumerate(self._regions):
            shift = self._starts[bucket] - region.start
            pieces = (piece for _, piece in self._layout.pieces_in(region))
            for parameter, run in groupby(pieces, lambda piece: piece.parameter):
                together = list(run)
                whole = Region(together[0].start, together[-1].stop)
                yield _Owned(parameter, whole, slice(whole.start + shift, whole.stop + shift))

    def _update(
        self,
        bucket: int,
        weights: Tensor,
        gradient: Tensor,
        kept: Sequence[Tensor],
        rate: float,
        present: Sequence[bool],
    ) -> None:
        """Update the owned region of a bucket; the tensors hold that region and nothing else."""
        start = self._regions[bucket].start
        for decay, pieces in self._groups(bucket, present):
            places = [slice(p.start - start, p.stop - start) for p in pieces]
            counts = [self.updates[p.parameter] + 1 for p in pieces]
            moments = [[moment[place] for place in places] for moment in kept]
            self._rule.update([weights[p] for p in places], [gradient[p] for p in places], moments, counts, rate, decay)

    def _groups(self, bucket: int, present: Sequence[bool]) -> Iterator[_Group]:
        pieces = [piece for _, piece in self._layout.pieces_in(self._regions[bucket]) if present[piece.parameter]]
        for decay in (True, False):
            group = [piece for piece in pieces if self._decays[piece.parameter] is decay]
            if group:
                yield _Group(decay, group)

    def _kept(self, bucket: int) -> list[Tensor]:
        start = self._starts[bucket]
        return [moment[start : start + self._regions[bucket].size] for moment in self.moments]
