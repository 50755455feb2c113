"""The step: what a training loop calls, for any module and any loss.

    for lane in step.lanes:
        for micro in range(accumulate):
            step.backward(loss of micro-batch (lane, micro), summed, divided by the targets of the whole step)
    sums = step.reduce()
    step.propose(learning_rate)
    step.commit()

Until `commit` weights and moments are those of the step before: abandoning a step is forgetting it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from samestep.errors import Corrupted, NotFinite, RecipeError
from samestep.model import optim
from samestep.replica.board import Wish
from samestep.replica.seal import Frozen, Rest
from samestep.replica.state import Moments, State
from samestep.replica.witness import Witness
from samestep.sync import tree, vote
from samestep.sync.accumulate import Accumulator
from samestep.sync.exact import Exact
from samestep.sync.exchange import Exchange
from samestep.sync.fast import Fast
from samestep.sync.flat import cut, trainable
from samestep.sync.scalars import told
from samestep.sync.slices import Layout, layout
from samestep.wire.collective import Collective, Operation, Tag, everybody_ready

STRATEGIES: dict[str, Callable[[Any, Layout, int, int, torch.device], Exchange]] = {"exact": Exact, "fast": Fast}
CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_


class Sums(NamedTuple):
    """What a step adds up over its lanes: the same at any number of replicas."""

    loss: float
    gradient_norm: float
    wish: Wish = Wish.NONE


class Step:
    """One replica's steps. The module's trainable parameters move into one flat float32 buffer.

    lanes: the equal shares of a step, each `accumulate` micro-batches; part of the result, unlike replicas.
    clip: the largest global gradient norm.
    copies: replicas that keep the moments of each slice; with more than one, a replica can be lost.
    scrub: steps within which all weights are looked at for flipped bits; what is owned is at each step. 0: never. Then
    nothing but the step may write to the module's tensors.
    recompute: steps from one lane that two replicas compute, to compare them, to the next. 0: none.

    RecipeError if the module has no trainable float32 parameters or keeps batch statistics; PeerLost if
    another replica goes away; NotFinite, on all replicas, for a loss or gradient that is NaN or infinite.
    """

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
        bucket: int | None = None,
    ) -> None:
        self._named = trainable(module)
        self._parameters = list(self._named.values())
        self.layout = layout([p.numel() for p in self._parameters], lanes, bucket=bucket)
        self.state = State(self._parameters, self.layout, rule)
        self.copies, self._strategy = copies, strategy
        self._clip, self._count, self._micros = clip, lanes, accumulate
        self._buffers = _Unchanged(module)
        self._recompute = recompute
        self._scrub, self._frozen = scrub, Frozen(module, scrub) if scrub else None
        self.number = 0  # steps committed
        self.sums: Sums | None = None  # of the last step that was reduced
        self.shapes = {name: list(parameter.shape) for name, parameter in self._named.items()}
        self._begin(wire, None)

    def regroup(self, wire: Collective, moments: Moments) -> None:
        """Begin a generation on a fresh transport, with the moments of this replica's share in it. What is left of an
        open step is forgotten.
        """
        self.close()
        del self._gradients, self._exchange  # free their buffers before the new ones are made
        if self.sums and self.sums.wish is Wish.GATHER:
            self.sums = self.sums._replace(wish=Wish.NONE)  # it has come true
        self._begin(wire, moments)

    def _begin(self, wire: Collective, moments: Moments | None) -> None:
        self._wire = wire
        device = self._parameters[0].device
        self._exchange = STRATEGIES[self._strategy](wire, self.layout, self._count, self.copies, device)
        share = self._share = self._exchange.share
        self.state.adopt(share, moments)
        self._gradients = Accumulator(
            self._parameters, self.layout, share.turns, self._micros, self._start, wire.memory
        )
        spans = tree.spans(self._count, wire.size)
        self._witness = Witness(self._parameters, self._recompute, spans, wire.rank)
        self._losses: list[Tensor] = []
        self.ready = False  # whether all that the commit of the open step needs is here

    @property
    def lanes(self) -> list[int]:
        """The lanes to compute in the open step, in order: this replica's, and at times one of another to compare."""
        return [*self._share.span, *self._witness.more(self.number)]

    @property
    def span(self) -> range:
        """The lanes whose gradients this replica adds up."""
        return self._share.span

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
        self._exchange.finish()
        losses, norms, present, (strongest,) = self._share_scalars(wish)
        loss, norm = tree.total(losses), math.sqrt(math.fsum(norms))
        if not math.isfinite(loss + norm):
            self.check()
            everybody_ready(self._wire, Tag(self.number, Operation.INTACT))
            raise _not_finite(self.number, losses, norm)
        self._present = [bool(p) for p in present]
        if self._clip and norm > self._clip:
            for region in self._share.owned:
                cut(self._gradients.buffers[0], region).mul_(self._clip / (norm + CLIP_EPSILON))
        self._buffers.check()
        self.sums = Sums(loss, norm, Wish(int(strongest)))
        return self.sums

    def propose(self, learning_rate: float) -> None:
        """Compute the new weights and bring everybody's together, without changing any."""
        self._rate = learning_rate
        gradient = self._gradients.buffers[0]

        def write(bucket: int, out: Tensor) -> None:
            self.state.propose(bucket, out, gradient, learning_rate, self._present)

        self._exchange.gather(self.number, write, self._gradients.buffers)
        self.check()
        self.ready = True

    def commit(self) -> None:
        """Make the proposed weights the weights, once every replica has them all: then no death can part them."""
        everybody_ready(self._wire, Tag(self.number, Operation.READY))
        self._apply()

    def settle(self, number: int) -> None:
        """After a peer was lost: commit the open step alone where others have, so that `number` steps are committed."""
        if number > self.number:
            self._apply()

    def _apply(self) -> None:
        self.state.commit(self._gradients.buffers[0], self._rate, self._present)
        self._gradients.begin()
        self._losses.clear()
        self.number += 1
        self.ready = False
        self.seal()

    def seal(self) -> None:
        """Note what rests until the next commit. To be called where weights or moments have been set otherwise."""
        if self._scrub:
            self.state.rest(self.number % self._scrub, self._scrub)

    def check(self) -> None:
        """Corrupted where what rests here has changed."""
        broken = self.state.seal.broken() if self.state.seal else []
        broken += self._frozen.broken(self.number) if self._frozen else []
        if broken:
            raise _corrupted(self.number, self._what(broken[0]))

    def _what(self, rest: Rest) -> str:
        if rest.region is None:
            return rest.kind
        start, stop = rest.region
        names = [n for n, r in zip(self._named, self.layout.regions, strict=True) if r.start < stop and start < r.stop]
        return f"{rest.kind} of {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else "")

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

    def _start(self, bucket: int) -> None:
        self._exchange.start(self.number, bucket, self._gradients.buffers)

    def _share_scalars(self, wish: Wish) -> list[list[float]]:
        """Of all replicas: the loss of each lane, the sum of squares of each slice, which parameters had gradients, and
        the strongest wish.
        """
        norms = self.state.norms(self._gradients.buffers[0])
        wished = torch.tensor([wish], dtype=torch.float64)
        scalars = [self._lane_losses(), norms, self._gradients.present.double(), wished]
        (claims, computed), (losses, *others) = told(
            self._wire, self.number, [self._claims(), self._witness.claims(self.number)], scalars
        )
        self._vote(claims)
        self._witness.check(self.number, computed)
        # One replica has each lane and owns each slice (all, in `fast`): the others hold zeros there.
        return [losses.sum(0).tolist(), *(other.amax(0).tolist() for other in others)]

    def _claims(self) -> Tensor:
        size = self._wire.size
        return self.state.seal.claims(size) if self.state.seal else torch.zeros(size, dtype=torch.int64)

    def _vote(self, claims: Sequence[Sequence[int]]) -> None:
        """Corrupted where what this replica keeps is not what the others keep of the same."""
        for dispute in vote.disputes(claims, self.copies):
            if self._wire.rank in dispute.odd:
                raise _differs(self.number, dispute)

    def _lane_losses(self) -> Tensor:
        losses = torch.zeros(self._count, dtype=torch.float64)
        for index, loss in enumerate(self._losses[: self._micros * len(self.span)]):
            losses[self.span[index // self._micros]] += float(loss)
        return losses


class _Unchanged:
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


def _corrupted(step: int, what: str) -> Corrupted:
    return Corrupted(
        f"{what} changed while it rested after step {step}: a bit has flipped; nothing of it was applied; look at the "
        f"memory of this host if it happens again"
    )


def _differs(step: int, dispute: vote.Dispute) -> Corrupted:
    whose = "of most others" if dispute.outvoted else "of the other, and nobody can tell which is right"
    return Corrupted(
        f"the state of the slices of rank {dispute.owner} after step {step} is not that {whose}; nothing more was "
        f"applied; look at the memory and the processor of this host if it happens again"
    )


def _not_finite(step: int, losses: Sequence[float], norm: float) -> NotFinite:
    lane = next((lane for lane, loss in enumerate(losses) if not math.isfinite(loss)), None)
    what = f"the gradient norm is {norm}" if lane is None else f"the loss of lane {lane} is {losses[lane]}"
    error = NotFinite(
        f"step {step + 1}: {what}; nothing was applied; lower optimizer.learning_rate or look at that step's samples"
    )
    error.what, error.lane = what, lane
    return error
