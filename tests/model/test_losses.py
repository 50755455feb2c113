from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from samestep.model import losses
from samestep.model.losses import MASKED, MULTIPLE, cross_entropy, cross_entropy_sum

WIDTH, VOCABULARY = 16, 40


class Seen(TorchDispatchMode):
    """The shapes of all tensors made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []
        self.products: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.shapes.append(out.shape)
            if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
                self.products.append(out.shape)
        return out

    @property
    def largest(self) -> int:
        return max(shape.numel() for shape in self.shapes)


def inputs(rows: int, seed: int = 0, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, WIDTH, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (rows,), generator=generator)


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss * 0.3, of)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.lists(st.integers(0, 39)), st.integers(0, 1000))
def test_it_equals_torch_over_whole_logits(rows: int, chunk: int, masked: list[int], seed: int) -> None:
    hidden, weight, targets = inputs(rows, seed)
    targets[[i for i in masked if i < rows]] = MASKED
    ours, theirs = cross_entropy_sum(hidden, weight, targets, chunk), whole(hidden, weight, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    for a, b in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_masked_rows_count_for_nothing_and_get_no_gradient() -> None:
    hidden, weight, targets = inputs(12)
    targets[4:] = MASKED
    loss = cross_entropy_sum(hidden, weight, targets, chunk=5)
    torch.testing.assert_close(loss, whole(hidden[:4], weight, targets[:4]))
    assert not gradients(loss, hidden)[0][4:].any()
    assert cross_entropy_sum(hidden, weight, torch.full((12,), MASKED)).item() == 0


def test_a_hopeless_target_has_a_finite_loss() -> None:
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [400.0]])
    assert cross_entropy_sum(hidden, weight, torch.tensor([0])).item() == 400


def test_logits_are_never_whole() -> None:
    hidden, weight, targets = inputs(400)
    with Seen() as seen:
        cross_entropy_sum(hidden, weight, targets, chunk=20).backward()
    assert seen.largest == hidden.numel() < targets.numel() * VOCABULARY


@pytest.mark.parametrize("vocabulary", [49_152, 150_000])
@pytest.mark.parametrize("loss", [cross_entropy, cross_entropy_sum])
def test_logits_of_a_large_vocabulary_are_never_whole(loss: Callable[..., Tensor], vocabulary: int) -> None:
    hidden, weight, targets = inputs(128, vocabulary=vocabulary)
    with Seen() as seen:
        loss(hidden, weight, targets, chunk=32).sum().backward()
    assert seen.largest == 32 * vocabulary


def test_without_gradients_only_the_loss_is_computed_and_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs(30)
    trained = cross_entropy_sum(hidden, weight, targets, chunk=7)
    monkeypatch.setattr(losses, "_add_product", None)
    with torch.no_grad():
        assert torch.equal(cross_entropy_sum(hidden, weight, targets, chunk=7), trained)
    assert torch.equal(cross_entropy_sum(hidden.detach(), weight.detach(), targets, chunk=7), trained)


def test_under_autocast_products_are_bfloat16_and_sums_float32() -> None:
    hidden, weight, targets = inputs(64)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = cross_entropy_sum(hidden, weight, targets, chunk=16), whole(hidden, weight, targets)
    assert ours.dtype == torch.float32
    assert torch.equal(ours.detach(), cross_entropy_sum(hidden.bfloat16(), weight, targets, chunk=16).detach())
    assert not torch.equal(ours.detach(), cross_entropy_sum(hidden, weight, targets, chunk=16).detach())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for a, b in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()


def test_gradients_have_the_dtypes_of_the_inputs() -> None:
    hidden, weight, targets = inputs(8)
    hidden, weight = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    found = gradients(cross_entropy_sum(hidden, weight, targets), hidden, weight)
    assert [x.dtype for x in found] == [torch.bfloat16, torch.bfloat16]


def test_the_weights_gradient_is_summed_over_chunks_in_float32() -> None:
    hidden, weight, targets = inputs(512)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = gradients(cross_entropy_sum(hidden, weight, targets, chunk=1), weight)
    (exact,) = gradients(whole(hidden, weight, targets), weight)
    assert (found - exact).norm() < 0.005 * exact.norm()  # 512 additions in bfloat16 would be off by some hundredths


def test_a_second_backward_is_refused_not_scaled_twice() -> None:
    hidden, weight, targets = inputs(4)
    loss = cross_entropy_sum(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


@pytest.mark.parametrize("loss", [cross_entropy, cross_entropy_sum])
def test_for_a_frozen_weight_no_gradient_of_it_is_computed(loss: Callable[..., Tensor]) -> None:
    hidden, weight, targets = inputs(96)
    (trained,) = gradients(loss(hidden, weight, targets, chunk=32).sum(), hidden)
    weight = weight.detach()
    with Seen() as seen:
        (frozen,) = gradients(loss(hidden, weight, targets, chunk=32).sum(), hidden)
    assert torch.equal(frozen, trained)
    assert len(seen.products) == 6  # of three chunks the logits and the gradient of hidden
    assert weight.shape not in seen.shapes


def test_the_sum_may_skip_masked_positions() -> None:
    hidden, weight, targets = inputs(100)
    targets[10:90] = MASKED
    whole_sum, skipped = (cross_entropy_sum(hidden, weight, targets, skip_masked=skip) for skip in (False, True))
    torch.testing.assert_close(skipped, whole_sum)
    for a, b in zip(gradients(skipped, hidden, weight), gradients(whole_sum, hidden, weight), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss", [cross_entropy, partial(cross_entropy_sum, skip_masked=True)])
@pytest.mark.parametrize("targeted", [0, 1, 33, 64])
def test_masked_positions_cost_no_products_and_none_has_a_single_row(
    loss: Callable[..., Tensor], targeted: int
) -> None:
    hidden, weight, targets = inputs(400)
    targets[targeted:] = MASKED
    with Seen() as seen:
        found = loss(hidden, weight, targets).sum()
    rows = -(-targeted // MULTIPLE) * MULTIPLE
    assert {shape for shape in seen.products if shape != weight.shape} == {(rows, VOCABULARY), (rows, WIDTH)}
    for_hidden, for_weight = gradients(found, hidden, weight)
    assert found.isfinite() and not for_hidden[targeted:].any()
    assert for_hidden.any() == for_weight.any() == bool(targeted)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 80), st.integers(1, 90), st.lists(st.integers(0, 79)), st.integers(0, 1000))
def test_each_positions_loss_and_any_mix_of_their_gradients_equal_torchs(
    rows: int, chunk: int, masked: list[int], seed: int
) -> None:
    hidden, weight, targets = inputs(rows, seed)
    targets[[i for i in masked if i < rows]] = MASKED
    mix = torch.randn(rows, generator=torch.Generator().manual_seed(seed + 1))
    ours = cross_entropy(hidden, weight, targets, chunk)
    theirs = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = gradients((theirs * mix).sum(), hidden, weight)
    for a, b in zip(gradients((ours * mix).sum(), hidden, weight), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_each_loss_without_gradients_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs(90)
    targets[::3] = MASKED
    trained = cross_entropy(hidden, weight, targets, chunk=32)
    monkeypatch.setattr(losses, "_add_product", None)
    with torch.no_grad():
        assert torch.equal(cross_entropy(hidden, weight, targets, chunk=32), trained)


def test_each_loss_under_autocast_is_float32_of_bfloat16_products() -> None:
    hidden, weight, targets = inputs(512)
    mix = torch.linspace(-1, 1, 512)
    with torch.autocast("cpu", torch.bfloat16):
        ours = cross_entropy(hidden, weight, targets, chunk=32)
        theirs = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
    assert ours.dtype == torch.float32
    assert not torch.equal(ours, cross_entropy(hidden, weight, targets, chunk=32))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    exact = gradients((cross_entropy(hidden, weight, targets) * mix).sum(), hidden, weight)
    for a, b in zip(gradients((ours * mix).sum(), hidden, weight), exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()


def test_a_second_backward_of_each_loss_gives_the_same_again() -> None:
    hidden, weight, targets = inputs(40)
    mixed = (cross_entropy(hidden, weight, targets) * torch.linspace(0, 1, 40)).sum()
    first = torch.autograd.grad(mixed, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(mixed, (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
