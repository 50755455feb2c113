"""The step: what a training loop calls, for any module and any loss.

for lane in step.lanes:
    for micro in range(accumulate):
        step.backward(loss of micro-batch (lane, micro), summed, divided by the targets of the whole step)
sums = step.reduce()
step.propose(learning_rate)
step.commit()
"""

import math

import torch
from torch import Tensor, nn

from samestep.errors import RecipeError
from samestep.model import optim
from samestep.replica.agreement import Agreement, Numbers, Sums, norm_of, not_finite
from samestep.replica.board import Wish
from samestep.replica.carried import FEEDBACK, Carried
from samestep.replica.split import WHOLE, Split
from samestep.replica.state import Kept
from samestep.replica.witness import Witness
from samestep.sync import tree
from samestep.sync.accumulate import Accumulator
from samestep.sync.flat import cut
from samestep.wire.collective import Collective
from samestep.wire.formats import EXACT, Formats

CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_


class Step(Agreement):
    """One replica's steps, of the gradients of lanes.

    lanes: the equal shares of a step, each `accumulate` micro-batches; part of the result, unlike replicas.
    clip: the largest global gradient norm.
    copies, scrub, formats, split: see Agreement.
    recompute: steps from one lane that two replicas compute, to compare them, to the next. 0: none.

    RecipeError if the module has no trainable float32 parameters or keeps batch statistics; PeerLost if
    another replica goes away; NotFinite, on all replicas, for a loss or gradient that is NaN or infinite.
    """

    open = False  # a step is agreed on by all as soon as it is committed

    def __init__(
        self,
        module: nn.Module,
        wire: Collective,
        rule: optim.Rule,
        *,
        lanes: int,
        clip: float | None = None,
        accumulate: int = 1,
        strategy: str = "exact",
        copies: int = 1,
        scrub: int = 0,
        recompute: int = 0,
        formats: Formats = EXACT,
        bucket: int | None = None,
        split: Split = WHOLE,
    ) -> None:
        super().__init__(
            module,
            rule,
            units=lanes,
            strategy=strategy,
            copies=copies,
            scrub=scrub,
            formats=formats,
            bucket=bucket,
            split=split,
        )
        if formats.sums != EXACT.sums:
            self.state.carried = Carried(self.layout, "lane", [FEEDBACK], lanes)
        self._clip, self._micros, self._recompute = clip, accumulate, recompute
        self._buffers = Unchanged(module)
        self.sums: Sums | None = None  # of the last step that was reduced
        self._take_part(wire, None)

    def regroup(self, wire: Collective, kept: Kept) -> None:
        """Begin a generation on a fresh transport, with what is kept of this replica's share in it. What is left of an
        open step is forgotten.
        """
        self.close()
        del self._gradients
        self.free()
        if self.sums and self.sums.wish is Wish.GATHER:
            self.sums = self.sums._replace(wish=Wish.NONE)  # it has come true
        self._take_part(wire, kept)

    def _take_part(self, wire: Collective, kept: Kept | None) -> None:
        self._share = self.begin(wire, kept)
        self._gradients = Accumulator(
            self.parameters, self.layout, self._share.turns, self._micros, self._started, self.memory
        )
        spans = tree.spans(self.units, wire.size)
        self._witness = Witness(self.parameters, self._recompute, spans, wire.rank)
        self._losses: list[Tensor] = []

    @property
    def lanes(self) -> list[int]:
        """The lanes to compute in the open step, in order: this replica's, and at times one of another to compare."""
        return [*self._share.span, *self._witness.more(self.number)]

    @property
    def span(self) -> range:
        """The lanes whose gradients this replica adds up."""
        return self._share.span

    @property
    def number(self) -> int:
        """Steps committed."""
        return self.commits

    @number.setter
    def number(self, number: int) -> None:
        self.commits = number

    @property
    def since(self) -> int:
        """The step before those of the last commit."""
        return self.number - 1

    @property
    def told(self) -> list[Sums]:
        """Of the steps that the last commit made, in order."""
        return [self.sums] if self.sums else []

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro-batch; `loss` is a scalar, already divided by what the whole step sums over."""
        self._witness.listen(self.number, len(self._losses) // self._micros)
        loss.backward()  # type: ignore[no-untyped-call]
        self._losses.append(loss.detach())
        self._gradients.micro_batch_done()

    def reduce(self, wish: Wish = Wish.NONE) -> Sums:
        """Complete the step's gradient and agree on its loss and norm. Clips the gradient.

        wish: what this replica has been told to do after this step; all learn of it in the same one.
        """
        numbers = self._numbers(wish)
        losses = numbers.losses.tolist()
        squares, wished = self.split.agreed(math.fsum(numbers.norms), numbers.wish)
        loss, norm = tree.total(losses), norm_of(squares)
        if not math.isfinite(loss + norm):
            self.refuse(not_finite(self.number, losses, norm))
        if self._clip and norm > self._clip:
            for region in self._share.owned:
                cut(self._gradients.buffers[0], region).mul_(self._clip / (norm + CLIP_EPSILON))
        self._buffers.check()
        self._present, self.sums = numbers.present, Sums(loss, norm, Wish(wished))
        return self.sums

    def propose(self, learning_rate: float) -> None:
        """Compute the new weights and bring everybody's together, without changing any."""
        self.offer(learning_rate, self._gradients.buffers, self._present, range(self.layout.buckets))

    def apply(self) -> None:
        super().apply()
        self._gradients.begin()
        self._losses.clear()

    def update(self, learning_rate: float) -> Sums:
        """reduce, propose and commit in one call."""
        sums = self.reduce()
        self.propose(learning_rate)
        self.commit()
        return sums

    def owned_gradient(self) -> dict[tuple[int, int], Tensor]:
        """Between reduce and propose: copies of the pieces owned, by parameter and the piece's start inside it."""
        regions, whole = self.layout.regions, self._gradients.buffers[0]
        pieces = [piece for region in self._share.owned for _, piece in self.layout.pieces_in(region)]
        return {(p.parameter, p.start - regions[p.parameter].start): whole[p.start : p.stop].clone() for p in pieces}

    def close(self) -> None:
        """Take the hooks off the module. Its weights stay as they are."""
        self._gradients.close()
        self._witness.close()

    def _started(self, bucket: int) -> None:
        self.start(bucket, self._gradients.buffers)

    def _numbers(self, wish: Wish) -> Numbers:
        gradients, claims = self._gradients, self._witness.claims(self.number)
        numbers = self.add_up(gradients.buffers, self._lane_losses(), gradients.present.any(0), wish, claims)
        self._witness.check(self.number, numbers.computed)
        return numbers

    def _lane_losses(self) -> Tensor:
        losses = torch.zeros(self.units, dtype=torch.float64)
        for index, loss in enumerate(self._losses[: self._micros * len(self.span)]):
            losses[self.span[index // self._micros]] += float(loss)
        return losses


class Unchanged:
    """Buffers of a module must not change in forward: their values would follow the lanes that a replica has."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = dict(module.named_buffers())
        self._versions = {name: b._version for name, b in self._buffers.items()}

    def check(self) -> None:
        for name, buffer in self._buffers.items():
            if buffer._version != self._versions[name]:
                raise RecipeError(
                    f"the model writes its buffer {name} in forward; its value would follow the micro-batches that a "
                    f"replica happens to see, so replicas would differ; use a layer without running state"
                )
