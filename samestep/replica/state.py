"""The state of training that one replica holds: all weights, and the moments of the regions of its share.

An update is made twice: `propose` on copies, which gives the new weights and changes nothing, so that a step can be
abandoned until all replicas have it; then `commit` in place. The second costs less than keeping old values would,
which is two more arrays of the size of the owned weights.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from samestep.model import optim
from samestep.recover.shards import Part
from samestep.replica.carried import Carried, Units
from samestep.replica.copies import Copies
from samestep.replica.feedback import Feedback
from samestep.replica.seal import Rest, Seal
from samestep.replica.told import Told, blank
from samestep.sync.exchange import News
from samestep.sync.flat import cut, flatten
from samestep.sync.share import Share
from samestep.sync.slices import Layout, Piece, Region

# Elements whose new weights are computed at once: copies that stay in a processor's cache cost a third less, and on a
# GPU few calls cost less than many.
PORTION = {"cpu": 1 << 17, "cuda": 1 << 24}

Moments = dict[Region, list[Tensor]]  # of each region that is held, one tensor a moment; masters count as one


class Kept(NamedTuple):
    """What this replica keeps beside the weights, which all have: moments, and what belongs to its units alone."""

    moments: Moments
    units: Units


class _Group(NamedTuple):
    """Pieces of one region, with or without weight decay."""

    decay: bool
    pieces: list[Piece]


class _Run(NamedTuple):
    """Elements of one parameter, next to each other in a region, and their moments."""

    parameter: int
    region: Region
    moments: list[Tensor]


class State:
    """Weights in one flat float32 buffer in which the module's parameters live; moments of the held regions only.

    told: the format of new weights. elsewhere: parameters that another shard of the model counts in the norm.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        layout: Layout,
        rule: optim.Rule,
        told: str = "float32",
        elsewhere: Collection[int] = (),
    ) -> None:
        self.weights = flatten(parameters, layout)
        self.updates = [0] * len(parameters)  # made to each parameter
        self.kept = Kept({}, {})
        self.carried: Carried | None = None  # what units have, if anything
        self.seal: Seal | None = None  # on what rests since the last commit
        self.copies = Copies(self.weights.device)
        self._rule, self._layout, self._told, self._elsewhere = rule, layout, Told(told), elsewhere
        self._decays = [optim.decays(p) for p in parameters]

    @property
    def moments(self) -> Moments:
        return self.kept.moments

    @property
    def feedback(self) -> Feedback:
        return Feedback(self._layout, self._rounded_off(), self._share.sums)

    def adopt(self, share: Share, kept: Kept | None = None) -> None:
        """Take up a share, with what is kept of it, or with what there is at a first step, which is zero."""
        self.copies.hold()  # of what may be let go now
        self._share, self.seal = share, None
        self._seals: dict[int, Seal] = {}  # by turn
        self.kept = self.blank(share) if kept is None else kept

    def blank(self, share: Share) -> Kept:
        """What is kept of a share before the first step."""
        moments = {r: blank(self._told, cut(self.weights, r), self._rule.moments) for r in _held(share)}
        return Kept(moments, self.carried.blank(share.span, self.weights) if self.carried else {})

    def rest(self, turn: int, turns: int) -> None:
        """Take up the seal on what must not change until the next commit: what is held, feedback, of the other weights
        one part.
        """
        if turn not in self._seals:
            self._seals[turn] = Seal(self._resting(self._layout.part(turn, turns)))
        self.seal = self._seals[turn]

    def _resting(self, part: Region) -> list[Rest]:
        found = [Rest(f"the feedback of unit {unit}", values) for unit, values in self._rounded_off().items()]
        for bucket, regions in enumerate(self._share.held):
            for owner, region in regions.items():
                values = [cut(self.weights, region), *self.moments[region]]
                found += [Rest(*each, region, owner) for each in zip(self.kinds(), values, strict=True)]
            for other in _between(sorted(regions.values()), self._layout.bucket_region(bucket)):
                there = Region(max(other.start, part.start), min(other.stop, part.stop))
                if there.size > 0:
                    found.append(Rest("weights", cut(self.weights, there), there))
        return found

    def norms(self, gradient: Tensor) -> Tensor:
        """float64 [slices]: the sum of squares of each owned slice of the gradient, zero for the others."""
        result = torch.zeros(len(self._layout.pieces), dtype=torch.float64)
        owned = [pair for region in self._share.owned for pair in self._layout.pieces_in(region)]
        owned = [(slice, piece) for slice, piece in owned if piece.parameter not in self._elsewhere]
        if owned:
            norms = torch._foreach_norm([gradient[piece.start : piece.stop] for _, piece in owned])
            result.index_add_(0, torch.tensor([i for i, _ in owned]), torch.stack(norms).double().square().cpu())
        return result

    def propose(self, bucket: int, out: Tensor, gradient: Tensor, rate: float, present: Sequence[bool]) -> None:
        """Write the new weights of the owned region of a bucket to `out`; change nothing else."""
        whole = self._share.owned[bucket]
        for part in self._layout.portions(whole, PORTION.get(out.device.type, PORTION["cpu"])):
            within = Region(part.start - whole.start, part.stop - whole.start)
            new, weights = cut(out, within), cut(self.weights, part)
            copies = [cut(kept, within).clone() for kept in self.moments[whole]]
            new.copy_(copies.pop() if self._told.masters else weights)
            self._update(part, new, cut(gradient, part), copies, rate, present)
            self._told.news(new, weights)

    def commit(
        self, gathered: Tensor, news: News, rate: float, present: Sequence[bool], buckets: Sequence[int]
    ) -> None:
        """In these buckets update what is held in place (`gathered` has its gradient there) and take the rest from
        `news`, or else from `gathered`; the seal is renewed.
        """
        self.copies.hold()
        for bucket in buckets:
            regions = self._share.held[bucket]
            for region in regions.values():
                weights, gradient, moments = cut(self.weights, region), cut(gathered, region), self.moments[region]
                if self._told.masters:
                    self._update(region, moments[-1], gradient, moments[:-1], rate, present)
                    self._told.settle(weights, moments[-1])
                else:
                    self._update(region, weights, gradient, moments, rate, present)
            others = _between(sorted(regions.values()), self._layout.bucket_region(bucket))
            for other, values in news.get(bucket) or [(other, cut(gathered, other)) for other in others]:
                self._told.take(cut(self.weights, other), values)
            if self.seal:
                self.seal.renew_within(self._layout.bucket_region(bucket))
        self.updates = [count + there for count, there in zip(self.updates, present, strict=True)]

    def kinds(self) -> list[str]:
        """What there is of each parameter: weights, the optimizer's moments, masters where weights are rounded."""
        return ["weights", *(f"moment{i}" for i in range(self._rule.moments)), *["master"][: self._told.masters]]

    def saved(self) -> list[str]:
        """All kinds of values that a checkpoint has of each parameter."""
        return self.kinds() + (self.carried.names() if self.carried else [])

    def snapshot(self, names: Sequence[str]) -> dict[Part, Tensor]:
        """Copies on the CPU of what is owned, there once `copies.wait` has returned. names: of the parameters, in the
        order of their registration.
        """
        found, units = {}, self.carried.snapshot(self.kept.units, names) if self.carried else {}
        for run in self._runs(self._share.owned):
            at = self._layout.regions[run.parameter].start
            for kind, values in zip(self.kinds(), [cut(self.weights, run.region), *run.moments], strict=True):
                part = Part(kind, names[run.parameter], run.region.start - at, run.region.stop - at)
                found[part] = values
        return units | self.copies.take(found)

    def restore(self, names: Sequence[str], parts: Iterable[tuple[Part, memoryview]], updates: Sequence[int]) -> None:
        """Take over all weights, and of the moments what is held, from the float32 bytes of `parts`."""
        numbers = {name: number for number, name in enumerate(names)}
        runs = sorted(self._runs(_held(self._share)), key=lambda run: run.parameter)
        held = {number: list(group) for number, group in groupby(runs, lambda run: run.parameter)}
        for part, data in parts:
            number, values = numbers[part.parameter], torch.frombuffer(data, dtype=torch.float32)
            if self.carried and self.carried.take(self.kept.units, part, number, values):
                continue
            at = self._layout.regions[number].start
            here = Region(at + part.start, at + part.stop)
            if part.kind == "weights":
                cut(self.weights, here).copy_(values)
            else:
                _take(self.kinds().index(part.kind) - 1, held.get(number, []), here, values)
        self.updates = list(updates)

    def _rounded_off(self) -> dict[int, Tensor]:
        return self.carried.feedback(self.kept.units) if self.carried else {}

    def _runs(self, regions: Iterable[Region]) -> Iterator[_Run]:
        for region in regions:
            pieces = (piece for _, piece in self._layout.pieces_in(region))
            for parameter, group in groupby(pieces, lambda piece: piece.parameter):
                together = list(group)
                whole = Region(together[0].start, together[-1].stop)
                places = slice(whole.start - region.start, whole.stop - region.start)
                yield _Run(parameter, whole, [moment[places] for moment in self.moments[region]])

    def _update(
        self,
        region: Region,
        weights: Tensor,
        gradient: Tensor,
        kept: Sequence[Tensor],
        rate: float,
        present: Sequence[bool],
    ) -> None:
        """The tensors hold the region and nothing else."""
        for decay, pieces in self._groups(region, present):
            places = [slice(p.start - region.start, p.stop - region.start) for p in pieces]
            counts = [self.updates[p.parameter] + 1 for p in pieces]
            moments = [[moment[place] for place in places] for moment in kept]
            self._rule.update([weights[p] for p in places], [gradient[p] for p in places], moments, counts, rate, decay)

    def _groups(self, region: Region, present: Sequence[bool]) -> Iterator[_Group]:
        pieces = [piece for _, piece in self._layout.pieces_in(region) if present[piece.parameter]]
        for decay in (True, False):
            group = [piece for piece in pieces if self._decays[piece.parameter] is decay]
            if group:
                yield _Group(decay, group)


def _held(share: Share) -> list[Region]:
    return [region for regions in share.held for region in regions.values()]


def _between(regions: Sequence[Region], whole: Region) -> Iterator[Region]:
    """What of `whole` lies in none of `regions`, which ascend."""
    place = whole.start
    for region in regions:
        yield Region(place, region.start)
        place = region.stop
    yield Region(place, whole.stop)


def _take(moment: int, runs: Sequence[_Run], here: Region, values: Tensor) -> None:
    """Copy to that moment of the runs those of the `values` of the region `here` that lie in them."""
    for _, region, moments in runs:
        start, stop = max(here.start, region.start), min(here.stop, region.stop)
        if start < stop:
            place = slice(start - region.start, stop - region.start)
            moments[moment][place].copy_(values[start - here.start : stop - here.start])
