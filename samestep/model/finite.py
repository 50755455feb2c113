"""Which layer makes the first number that is not finite: one forward and backward pass, with hooks on every module."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LOSS = -1  # in the place of a layer: what follows all of them


class Origin(NamedTuple):
    """backward: whether all of the forward pass is finite. layer: its number in `module.modules()`, or LOSS."""

    backward: bool
    layer: int


def first(module: nn.Module, loss: Callable[[], Tensor]) -> Origin | None:
    """Where in loss() or its backward numbers that are not finite begin; None where loss and gradients are finite.

    Forward it is the first layer that gives such a number and was given none, the inner one before the one around it;
    backward likewise, from the gradient of its output to those of its inputs and parameters. No gradient is kept.
    """
    with _Trace(module) as trace:
        value = loss()
        whole = is_finite(value)
        if whole:
            value.backward()  # type: ignore[no-untyped-call]
    if whole and not trace.spoilt:
        return None
    layer = trace.forward_layer()
    if whole and layer is None:
        return Origin(True, trace.backward_layer())
    return Origin(False, LOSS if layer is None else layer)


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())


class _Call:
    """A call of a layer, and whether each of these is finite: what it was given, what it gave; and in backward the
    gradient that came (None: none did) and the one that it passed on.
    """

    def __init__(self, number: int, layer: nn.Module) -> None:
        self.number, self.layer = number, layer
        self.given = self.gave = self.passed = True
        self.came: bool | None = None

    def take(self, views: dict[int, Tensor], value: Any) -> Any:
        """Look at an argument. One with a gradient is seen through a view, whose gradient is that of this call alone.

        Others are left out: a mask may well hold infinities.
        """
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        self.given &= is_finite(value)
        if torch.is_grad_enabled() and id(value) not in views:
            views[id(value)] = value.view_as(value)  # one view for one tensor: layers ask whether k is v
            views[id(value)].register_hook(self._pass)  # type: ignore[no-untyped-call]
        return views.get(id(value), value)

    def give(self, output: Any) -> None:
        for tensor in _tensors(output):
            self.gave &= is_finite(tensor)
            if tensor.requires_grad:
                tensor.register_hook(self._come)  # type: ignore[no-untyped-call]

    def _come(self, gradient: Tensor) -> None:
        self.came = is_finite(gradient) and self.came is not False

    def _pass(self, gradient: Tensor) -> None:
        self.passed &= is_finite(gradient)


class _Trace:
    """The calls of all layers while the `with` block is open. spoilt: parameters whose gradient is not finite."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.spoilt: set[Tensor] = set()
        self._begun: list[_Call] = []  # in the order in which they begin
        self._ended: list[_Call] = []
        self._open: list[_Call] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "_Trace":
        for number, layer in enumerate(self._module.modules()):
            self._hooks.append(layer.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(self._leave))
        for parameter in self._module.parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._judge))  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def forward_layer(self) -> int | None:
        bad = [call for call in self._ended if not call.gave]
        return next((call.number for call in bad if call.given), bad[0].number if bad else None)

    def backward_layer(self) -> int:
        for call in reversed(self._begun):
            if call.came and not (call.passed and self.spoilt.isdisjoint(call.layer.parameters())):
                return call.number
        return LOSS

    def _enter(self, number: int, layer: nn.Module, given: Any, named: Any) -> Any:
        call, views = _Call(number, layer), dict[int, Tensor]()
        self._begun.append(call)
        self._open.append(call)
        return tuple(call.take(views, one) for one in given), {key: call.take(views, one) for key, one in named.items()}

    def _leave(self, _layer: nn.Module, _given: Any, output: Any) -> None:
        call = self._open.pop()
        call.give(output)
        self._ended.append(call)

    def _judge(self, parameter: Tensor) -> None:
        if parameter.grad is not None and not is_finite(parameter.grad):
            self.spoilt.add(parameter)
        parameter.grad = None


def _tensors(output: Any) -> Iterator[Tensor]:
    """Of what a layer gives: a tensor, or tuples, lists and mappings of them; of other things none."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _tensors(one)
