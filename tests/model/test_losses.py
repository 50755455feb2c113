import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from samestep.model import losses
from samestep.model.losses import MASKED, cross_entropy_sum

WIDTH, VOCABULARY = 16, 40


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (rows,), generator=generator)


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
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    hidden, weight, targets = inputs(400)
    with Largest() as seen:
        cross_entropy_sum(hidden, weight, targets, chunk=20).backward()
    assert seen.elements == hidden.numel() < targets.numel() * VOCABULARY


def test_without_gradients_only_the_loss_is_computed_and_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs(30)
    trained = cross_entropy_sum(hidden, weight, targets, chunk=7)
    monkeypatch.setattr(losses, "_gradients", None)
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
