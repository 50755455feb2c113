"""Infrequent synchronisation: islands train by themselves and meet every so many steps.

DiLoCo (Douillard et al., arXiv 2311.08105, algorithm 1) and its streaming form (Douillard et al., arXiv 2501.18512):
fragments that meet in turn, their exchange behind the steps that follow, and weights that are mixed in.

An *island* is a fixed set of lanes, named by the recipe. It has weights and moments of its own and is carried whole by
one replica, so the model does not depend on how many replicas carry the islands. Between two meetings nothing is sent.
In the first steps, where islands would part fastest, they may meet after each and take the mean (post-local SGD, Lin et
al., arXiv 1808.07217).

    inner   each island: AdamW, say, on the sum of the gradients of its lanes
    outer   all of them: the mean of (common weights - island's weights) is a gradient for Nesterov's momentum

The outer step is an exact step whose lanes are the islands. Until a meeting is committed the common weights stay as
they are; a replica that is lost takes its islands along, and all go on from the newest checkpoint.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from samestep.model import optim
from samestep.recipe.schema import Diloco
from samestep.replica.agreement import Agreement, Sums, norm_of, not_finite
from samestep.replica.board import Wish
from samestep.replica.carried import FEEDBACK, Carried
from samestep.replica.state import Kept
from samestep.replica.step import CLIP_EPSILON, Unchanged
from samestep.sync import tree
from samestep.sync.accumulate import Accumulator
from samestep.sync.flat import cut, views
from samestep.sync.legs import Legs, buckets
from samestep.sync.share import turns
from samestep.sync.tree import Node
from samestep.wire.collective import Collective
from samestep.wire.formats import EXACT, Formats


class Islands(Agreement):
    """One replica's islands. What it agrees on with the others are the common weights; see Agreement.

    steps: of the whole run; with the last one all weights are brought together.
    """

    def __init__(
        self,
        module: nn.Module,
        wire: Collective,
        rule: optim.Rule,
        terms: Diloco,
        *,
        lanes: int,
        steps: int,
        clip: float | None = None,
        accumulate: int = 1,
        scrub: int = 0,
        formats: Formats = EXACT,
        bucket: int | None = None,
    ) -> None:
        super().__init__(
            module,
            optim.Nesterov(terms.momentum, terms.together),
            units=terms.islands,
            strategy="exact",
            copies=1,
            scrub=scrub,
            formats=formats,
            bucket=bucket,
        )
        self._rule, self._terms, self._clip, self._micros = rule, terms, clip, accumulate
        kinds = ["weights", *(f"moment{at}" for at in range(rule.moments)), *[FEEDBACK][: formats.sums != EXACT.sums]]
        self.state.carried = Carried(self.layout, "island", kinds, terms.islands)
        self._lanes, self._spans = lanes, tree.spans(lanes, terms.islands)
        self._legs = Legs(terms.every, terms.fragments, terms.overlap, steps, terms.together)
        self._decays = [optim.decays(p) for p in self.parameters]
        self._buffers = Unchanged(module)
        self.told: list[Sums] = []  # of the steps of the last commit
        self.number = 0
        self._take_part(wire, None)

    def _take_part(self, wire: Collective, kept: Kept | None) -> None:
        share = self.begin(wire, kept)
        span = self._mine = share.span
        own = turns([tree.merges(Node(each.start, each.stop)) for each in self._spans[span.start : span.stop]])
        self._gradients = Accumulator(self.parameters, self.layout, own, self._micros, _nothing, _zeros)
        self._parts = share.sums
        self._sums = [self.memory(self.layout.total, self.parameters[0]) for _ in range(1 + max(share.sums))]
        self._sent: dict[int, dict[int, Tensor]] = {}  # by bucket and island, the weights that are on their way
        self._losses: list[Tensor] = []  # of the open step
        self._leg: list[Tensor] = []  # float64 [lanes + islands] a step: losses, and norms of gradients
        if kept is None:
            for weights, *_ in self.state.kept.units.values():
                weights.copy_(self.state.weights)
        self._views = {unit: self._views_of(values[0]) for unit, values in self.state.kept.units.items()}
        self._show(self._views_of(self.state.weights))

    def regroup(self, wire: Collective, kept: Kept) -> None:
        """Begin a generation, between two legs, with what is kept of this replica's share in it."""
        self.close()
        del self._gradients, self._sums
        self.free()
        self.told = [sums._replace(wish=Wish.NONE) if sums.wish is Wish.GATHER else sums for sums in self.told]
        self._take_part(wire, kept)

    @property
    def number(self) -> int:
        """Steps that this replica has made."""
        return self._number

    @number.setter
    def number(self, number: int) -> None:
        """To be set at the end of a leg."""
        self._number, self.commits = number, self._legs.commits(number)

    @property
    def since(self) -> int:
        """The step before those of the last commit."""
        return self._legs.since(self.number)

    @property
    def open(self) -> bool:
        """Whether this replica is between two meetings, where nobody else can say what it has."""
        return bool(self._leg) and not self.ready

    @property
    def span(self) -> range:
        """The lanes whose gradients this replica adds up."""
        return range(self._spans[self._mine.start].start, self._spans[self._mine.stop - 1].stop)

    @property
    def lanes(self) -> Iterator[int]:
        """The lanes to compute in the open step, in order; the module has the weights of each one's island."""
        for unit in self._mine:
            self._show(self._views[unit])
            yield from self._spans[unit]

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro-batch; `loss` is a scalar, already divided by what the whole step sums over."""
        loss.backward()  # type: ignore[no-untyped-call]
        self._losses.append(loss.detach())
        self._gradients.micro_batch_done()

    def reduce(self, wish: Wish = Wish.NONE) -> None:
        """Complete and clip the gradient of each island, that of the mean over its own lanes."""
        self._wish, row = wish, torch.zeros(self._lanes + self.units, dtype=torch.float64)
        for index, loss in enumerate(self._losses):
            row[self.span[index // self._micros]] += float(loss)
        for gradient, unit in zip(self._gradients.buffers, self._mine, strict=False):
            gradient.mul_(self.units)
            row[self._lanes + unit] = norm = self._norm(gradient)
            if self._clip and norm > self._clip:
                gradient.mul_(self._clip / (norm + CLIP_EPSILON))
        self._buffers.check()
        self._leg.append(row)

    def propose(self, learning_rate: float) -> None:
        """The inner step of each island; where the leg ends, the common weights too, without changing any."""
        present = self._gradients.present.tolist()
        for gradient, there, unit in zip(self._gradients.buffers, present, self._mine, strict=False):
            self._inner(unit, gradient, there, learning_rate)
        self._gradients.begin()
        self._losses.clear()
        if self._legs.leaves(self.number):
            for bucket in self._meeting():
                self._set_off(bucket)
        if self._legs.meets(self.number):
            self._meet()

    def commit(self) -> None:
        """Where no leg ends, there is nothing to agree on."""
        if self.ready:
            super().commit()
        else:
            self._number += 1

    def apply(self) -> None:
        """The common weights are those that were proposed, and the islands go on from them."""
        meeting, keep = self._meeting(), 0.0 if self._legs.whole(self.number) else self._terms.mix
        super().apply()
        for bucket in meeting:
            region, sent = self.layout.bucket_region(bucket), self._sent.pop(bucket, {})
            for unit, (weights, *_) in self.state.kept.units.items():
                _go_on(cut(weights, region), cut(self.state.weights, region), sent.get(unit), keep)
        self._number += 1
        self._leg.clear()
        self._show(self._views_of(self.state.weights))

    def close(self) -> None:
        """Take the hooks off the module."""
        self._gradients.close()

    def _inner(self, unit: int, gradient: Tensor, there: list[bool], rate: float) -> None:
        """Adam's bias correction counts all steps of the run, also those without a gradient."""
        weights, *moments = self.state.kept.units[unit][: 1 + self._rule.moments]
        for decay in (True, False):
            chosen = [i for i, known in enumerate(there) if known and self._decays[i] is decay]
            if chosen:
                pieces = [[cut(flat, self.layout.regions[i]) for i in chosen] for flat in (weights, gradient, *moments)]
                self._rule.update(pieces[0], pieces[1], pieces[2:], [self.number + 1] * len(chosen), rate, decay)

    def _meeting(self) -> range:
        """The buckets that the leg brings together."""
        return buckets(self._legs.fragment(self.number), self._terms.fragments, self.layout.buckets)

    def _set_off(self, bucket: int) -> None:
        """What the islands have learnt is on its way, as far as it is this replica's to add up."""
        region = self.layout.bucket_region(bucket)
        if not self._legs.meets(self.number):
            self._sent[bucket] = {u: cut(values[0], region).clone() for u, values in self.state.kept.units.items()}
        learnt = {
            Node(unit, unit + 1): (cut(self.state.weights, region) - cut(values[0], region)).div_(self.units)
            for unit, values in self.state.kept.units.items()
        }
        for at, part in self._parts.items():
            cut(self._sums[at], region).copy_(tree.fold(part, learnt, lambda left, right: left.add_(right)))
        self.start(bucket, self._sums)

    def _meet(self) -> None:
        everything = torch.ones(len(self.parameters), dtype=torch.bool)
        nothing = torch.zeros(0, dtype=torch.int64)
        numbers = self.add_up(self._sums, torch.cat(self._leg), everything, self._wish, nothing)
        rows = numbers.losses.view(-1, self._lanes + self.units).tolist()
        self.told = [self._summed(self.number + 1 - len(rows) + at, row) for at, row in enumerate(rows)]
        self.told[-1] = self.told[-1]._replace(wish=numbers.wish)
        rate = 1.0 if self.number < self._terms.together else self._terms.rate
        self.offer(rate, self._sums, numbers.present, self._meeting())

    def _summed(self, number: int, row: list[float]) -> Sums:
        """Of step `number`. The norm is the root of the mean square over the islands."""
        losses, norms = row[: self._lanes], row[self._lanes :]
        loss, norm = tree.total(losses), norm_of([each * each / self.units for each in norms])
        if not math.isfinite(loss + norm):
            self.refuse(not_finite(number, losses, norm))
        return Sums(loss, norm)

    def _norm(self, gradient: Tensor) -> float:
        norms = torch._foreach_norm([cut(gradient, region) for region in self.layout.regions])
        return norm_of(torch.stack(norms).double().square().tolist())

    def _views_of(self, flat: Tensor) -> list[Tensor]:
        return views(flat, self.layout, self.parameters)

    def _show(self, weights: list[Tensor]) -> None:
        """The module computes with these."""
        for parameter, view in zip(self.parameters, weights, strict=True):
            parameter.data = view


def _nothing(bucket: int) -> None:
    """Nobody waits for the buckets of an island's gradient."""


def _zeros(count: int, like: Tensor) -> Tensor:
    """Memory that is never sent."""
    return like.new_zeros(count)


def _go_on(own: Tensor, common: Tensor, sent: Tensor | None, keep: float) -> None:
    """An island goes on from the common weights, but for a share of its own; what it has learnt since it sent its
    weights off stays its own until they meet again.
    """
    if sent is not None:
        common = common + (own - sent)
    own.mul_(keep).add_(common * (1 - keep)) if keep else own.copy_(common)
