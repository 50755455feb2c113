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

from samestep.errors import RecipeError, SamestepError
from samestep.model import optim
from samestep.replica.state import State
from samestep.sync import tree
from samestep.sync.accumulate import Accumulator
from samestep.sync.exact import Exact
from samestep.sync.exchange import Exchange
from samestep.sync.fast import Fast
from samestep.sync.flat import cut, trainable
from samestep.sync.slices import Layout, layout
from samestep.wire.collective import Collective, Operation, Tag, all_gather

STRATEGIES: dict[str, Callable[[Any, Layout, int, torch.device], Exchange]] = {"exact": Exact, "fast": Fast}
CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_


class Sums(NamedTuple):
    """What a step adds up over its lanes: the same at any number of replicas."""

    loss: float
    gradient_norm: float


class Step:
    """One replica's steps. The module's trainable parameters move into one flat float32 buffer.

    lanes: the equal shares of a step, each `accumulate` micro-batches; part of the result, unlike replicas.
    clip: the largest global gradient norm.

    RecipeError if the module has no trainable float32 parameters or keeps batch statistics; PeerLost if
    another replica goes away.
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
        bucket: int | None = None,
    ) -> None:
        self._named = trainable(module)
        parameters = list(self._named.values())
        self._layout = layout([p.numel() for p in parameters], lanes, bucket=bucket)
        self._exchange = STRATEGIES[strategy](wire, self._layout, lanes, parameters[0].device)
        self._regions = [self._exchange.owned(b) for b in range(self._layout.buckets)]
        self.state = State(parameters, self._layout, self._regions, rule)
        self._sums = Accumulator(parameters, self._layout, self._exchange.turns(), accumulate, self._start)
        self._wire, self._clip, self._count = wire, clip, lanes
        self._buffers = _Unchanged(module)
        self._micros = accumulate
        self.number = 0  # steps committed
        self.shapes = {name: list(parameter.shape) for name, parameter in self._named.items()}
        self._losses: list[Tensor] = []

    @property
    def lanes(self) -> range:
        """The lanes that this replica computes, in order."""
        return self._exchange.span

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro-batch; `loss` is a scalar, already divided by what the whole step sums over."""
        loss.backward()  # type: ignore[no-untyped-call]
        self._losses.append(loss.detach())
        self._sums.micro_batch_done()

    def reduce(self) -> Sums:
        """Complete the step's gradient and agree on its loss and norm. Clips the gradient."""
        self._exchange.finish()
        losses, norms, present = self._share_scalars()
        loss, norm = tree.total(losses), math.sqrt(math.fsum(norms))
        if not math.isfinite(loss + norm):
            raise _not_finite(self.number, losses, norm)
        self._present = [bool(p) for p in present]
        if self._clip and norm > self._clip:
            for region in self._regions:
                cut(self._sums.buffers[0], region).mul_(self._clip / (norm + CLIP_EPSILON))
        self._buffers.check()
        return Sums(loss, norm)

    def propose(self, learning_rate: float) -> None:
        """Compute the new weights and bring everybody's together, without changing any."""
        self._rate = learning_rate
        gradient = self._sums.buffers[0]

        def write(bucket: int, out: Tensor) -> None:
            self.state.propose(bucket, out, gradient, learning_rate, self._present)

        self._exchange.gather(self.number, write, self._sums.buffers)

    def commit(self) -> None:
        """Make the proposed weights the weights."""
        self.state.commit(self._sums.buffers[0], self._rate, self._present)
        self._sums.begin()
        self._losses.clear()
        self.number += 1

    def update(self, learning_rate: float) -> Sums:
        """reduce, propose and commit in one call."""
        sums = self.reduce()
        self.propose(learning_rate)
        self.commit()
        return sums

    def owned_gradient(self) -> dict[tuple[int, int], Tensor]:
        """Between reduce and propose: copies of the pieces owned, by parameter and the piece's start inside it."""
        regions, whole = self._layout.regions, self._sums.buffers[0]
        pieces = [piece for region in self._regions for _, piece in self._layout.pieces_in(region)]
        return {(p.parameter, p.start - regions[p.parameter].start): whole[p.start : p.stop].clone() for p in pieces}

    def close(self) -> None:
        """Take the hooks off the module. Its weights stay as they are."""
        self._sums.close()

    def _start(self, bucket: int) -> None:
        self._exchange.start(self.number, bucket, self._sums.buffers)

    def _share_scalars(self) -> tuple[list[float], list[float], list[float]]:
        """Of all replicas: the loss of each lane, the sum of squares of each slice, which parameters had gradients."""
        norms = self.state.norms(self._sums.buffers[0])
        mine = torch.cat([self._lane_losses(), norms, self._sums.present.double()])
        everyone = [mine if r == self._wire.rank else torch.empty_like(mine) for r in range(self._wire.size)]
        all_gather(self._wire, Tag(self.number, Operation.SCALARS), mine, everyone).wait()
        # One replica has each lane and owns each slice (all, in `fast`): the others hold zeros there.
        merged = torch.stack(everyone)
        losses, squares, present = torch.split(merged, [self._count, len(norms), len(self._named)], dim=1)
        return losses.sum(0).tolist(), squares.amax(0).tolist(), present.amax(0).tolist()

    def _lane_losses(self) -> Tensor:
        losses = torch.zeros(self._count, dtype=torch.float64)
        for index, loss in enumerate(self._losses):
            losses[self.lanes[index // self._micros]] += float(loss)
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


def _not_finite(step: int, losses: Sequence[float], norm: float) -> SamestepError:
    bad = [lane for lane, loss in enumerate(losses) if not math.isfinite(loss)]
    where = f"the loss of lane {bad[0]} is {losses[bad[0]]}" if bad else f"the gradient norm is {norm}"
    return SamestepError(
        f"step {step + 1}: {where}; nothing was applied; lower optimizer.learning_rate or look at that step's samples"
    )
