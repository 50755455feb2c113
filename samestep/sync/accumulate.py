"""Adding up gradients on one replica: micro-batches of a lane in order, lanes along the tree.

A gradient is taken over as soon as backward has made it, or written where it is kept by the layer itself
(model/destination.py), so that no second set of gradients is ever held. The partial sums form a stack of flat
buffers, as deep as `tree.merges` says. When the last lane of the last partial sum has filled a bucket, the bucket is
reported, always in ascending order: all replicas exchange in one order, whatever order their backward takes. A
gradient that comes after the last lane is added to nothing.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from samestep.model.destination import offer
from samestep.sync.flat import here, views
from samestep.sync.share import Turn, buffers
from samestep.sync.slices import Layout


class Accumulator:
    """The gradient buffers of one replica. `ready(bucket)` is called in backward, on the thread that runs it.

    memory(count, like): zeros, from the transport that is to send them. present: bool[parts, parameters], whether any
    lane of a partial sum had a gradient.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        layout: Layout,
        turns: Sequence[Turn],
        accumulate: int,
        ready: Callable[[int], None],
        memory: Callable[[int, Tensor], Tensor],
    ) -> None:
        self._parameters, self._layout, self._turns = [here(p) for p in parameters], layout, turns
        self._micros, self._ready = accumulate, ready
        self.buffers = [memory(layout.total, self._parameters[0]) for _ in range(buffers(turns, accumulate))]
        self._views = [views(b, layout, parameters) for b in self.buffers]
        self._hooks = [p.register_post_accumulate_grad_hook(self._hook(i)) for i, p in enumerate(parameters)]  # type: ignore[no-untyped-call]
        self.present = torch.zeros(1 + max(t.part for t in turns), len(parameters), dtype=torch.bool)
        self.begin()

    def begin(self) -> None:
        """Start a step. What an abandoned one left is forgotten."""
        self._lane = self._micro = 0
        self.present.zero_()
        self._begin_lane()

    def micro_batch_done(self) -> None:
        """To be called after the backward of each micro-batch, in the order of lanes and micro-batches."""
        self._micro += 1
        if self._micro == self._micros and not self._over:
            for index in sorted(self._open, key=lambda i: self._layout.regions[i].start):
                self._close(index, None)
            self._micro, self._lane = 0, self._lane + 1
            self._begin_lane()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter in self._parameters:
            offer(parameter, None)

    @property
    def _over(self) -> bool:
        return self._lane == len(self._turns)

    def _begin_lane(self) -> None:
        self._open = set(range(len(self._parameters)))
        self._started: set[int] = set()
        self._missing = [0] * self._layout.buckets
        for index in self._open:
            for bucket in self._layout.buckets_of(index):
                self._missing[bucket] += 1
        self._reported = 0
        self._offer()

    def _offer(self) -> None:
        """The first gradient of a lane may be written where it is kept, unless it is added to another there."""
        turn = None if self._over else self._turns[self._lane]
        kept = turn is not None and (self._micros > 1 or not turn.merges)
        for index, parameter in enumerate(self._parameters):
            offer(parameter, self._views[turn.buffer][index].detach() if turn and kept else None)

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            offer(parameter, None)
            if gradient is not None and not self._over:
                self._take(index, here(gradient))

        return take

    @torch.no_grad()
    def _take(self, index: int, gradient: Tensor) -> None:
        self.present[self._turns[self._lane].part, index] = True
        if self._micro == self._micros - 1:
            self._close(index, gradient)
        elif index in self._started:
            self._views[self._turns[self._lane].buffer][index].add_(gradient)
        else:
            _put(self._views[self._turns[self._lane].buffer][index], gradient)
            self._started.add(index)

    @torch.no_grad()
    def _close(self, index: int, gradient: Tensor | None) -> None:
        """The last micro-batch of a lane: add what stands above in the stack. No gradient counts as zero."""
        buffer, merges, _ = self._turns[self._lane]
        if index in self._started:
            value = self._views[buffer][index]
            if gradient is not None:
                value.add_(gradient)
        elif merges:
            value = torch.zeros_like(self._parameters[index]) if gradient is None else gradient
        else:
            value = self._views[buffer][index]
            value.zero_() if gradient is None else _put(value, gradient)
        for below in range(buffer - 1, buffer - 1 - merges, -1):
            value = self._views[below][index].add_(value)
        self._open.discard(index)
        self._report(index)

    def _report(self, index: int) -> None:
        for bucket in self._layout.buckets_of(index):
            self._missing[bucket] -= 1
        if self._lane < len(self._turns) - 1:
            return
        while self._reported < self._layout.buckets and not self._missing[self._reported]:
            self._reported += 1
            self._ready(self._reported - 1)


def _put(place: Tensor, gradient: Tensor) -> None:
    if gradient.data_ptr() != place.data_ptr():
        place.copy_(gradient)
