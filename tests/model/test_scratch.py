import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samestep.model.losses import MASKED, cross_entropy_sum
from samestep.model.scratch import Scratch

VOCABULARY, WIDTH, PADDING = 50, 8, 3
TOKENS = torch.tensor([[1, 3, 1, 7], [3, 9, 49, 0]])
TARGETS = torch.tensor([[3, 1, 7, MASKED], [9, 49, 0, MASKED]])


def weight() -> Tensor:
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


def trained(embedding: Tensor, head: Tensor, scratch: Scratch | None, chunk: int = 3) -> Tensor:
    """The loss of a model that is nothing but its embeddings."""
    tied = scratch is not None and scratch.tied
    rows = scratch.lookup(TOKENS, embedding, PADDING) if tied else F.embedding(TOKENS, embedding, PADDING)
    loss = cross_entropy_sum(rows.tanh().flatten(0, 1), head, TARGETS.flatten(), chunk, scratch=scratch)
    (loss / 6).backward()
    return loss.detach()


def test_the_gradient_of_a_tied_embedding_is_that_of_both_its_uses() -> None:
    plain, kept, scratch = weight(), weight(), Scratch(tied=True)
    for _ in range(3):  # the second and third overwrite the memory of the one before
        plain.grad = kept.grad = None
        assert torch.equal(trained(plain, plain, None), trained(kept, kept, scratch))
        torch.testing.assert_close(kept.grad, plain.grad, rtol=1e-6, atol=1e-7)


def test_untied_embeddings_get_a_gradient_each() -> None:
    plain, kept = (weight(), weight()), (weight(), weight())
    trained(*plain, None)
    trained(*kept, Scratch(tied=False))
    for ours, theirs in zip(kept, plain, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_padding_gets_no_gradient_as_an_input() -> None:
    embedding, scratch = weight(), Scratch(tied=True)
    scratch.room(embedding, torch.float32, 1).gradient.zero_()
    scratch.lookup(TOKENS, embedding, PADDING).sum().backward()
    counts = torch.bincount(TOKENS.flatten(), minlength=VOCABULARY).float()
    counts[PADDING] = 0
    assert torch.equal(embedding.grad, counts[:, None].expand(-1, WIDTH))


def test_the_memory_stays_where_it_is() -> None:
    embedding, scratch = weight(), Scratch(tied=True)

    def places() -> list[int]:
        return [tensor.data_ptr() for tensor in scratch.room(embedding, torch.bfloat16, 4) if tensor is not None]

    before = places()
    with torch.autocast("cpu", torch.bfloat16):
        trained(embedding, embedding, scratch, chunk=4)
    assert places() == before and len(before) == 3
    assert embedding.grad.data_ptr() in before


@pytest.mark.parametrize("trains", [False, True])
def test_a_frozen_embedding_of_the_right_dtype_needs_logits_alone(trains: bool) -> None:
    embedding = weight().detach().requires_grad_(trains)
    room = Scratch(tied=False).room(embedding, torch.float32, 5)
    assert room.cast is None and room.logits.shape == (5, VOCABULARY)
    assert (room.gradient is not None) == trains


def test_without_gradients_a_lookup_is_an_embedding() -> None:
    embedding = weight()
    with torch.no_grad():
        rows = Scratch(tied=True).lookup(TOKENS, embedding, PADDING)
    assert torch.equal(rows, embedding[TOKENS]) and not rows.requires_grad
