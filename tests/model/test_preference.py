import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samestep.model.preference import LOSSES, bradley_terry, ipo, margins, ranked_right, sequence_sums, sigmoid
from samestep.recipe.schema import Dpo

MASKED = -100
CONTEXT = 24
finite = st.floats(-50, 50, width=32)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def row(seed: int, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Log-probabilities and targets with every third position masked."""
    targets = torch.arange(rows * CONTEXT).view(rows, CONTEXT)
    targets[:, 1::3] = MASKED
    return numbers(seed, rows, CONTEXT).masked_fill(targets == MASKED, 0), targets


def wish(**keys: object) -> Dpo:
    return Dpo.model_validate({"kind": "dpo", **keys})


def tokens(*counts: int) -> Tensor:
    return torch.tensor(counts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, CONTEXT), st.integers(0, CONTEXT)), max_size=6))
def test_a_sequence_is_the_sum_over_its_piece(spans: list[tuple[int, int, int]]) -> None:
    pieces = [(r, min(a, b), max(a, b), 7 * i) for i, (r, a, b) in enumerate(spans)]
    log_probabilities, targets = row(seed=1)
    sums, counts = sequence_sums(log_probabilities, targets, torch.tensor(pieces, dtype=torch.int64).view(-1, 4))
    assert (sums.dtype, counts.dtype) == (torch.float32, torch.int64)
    assert len(sums) == len(counts) == len(pieces)
    for (r, start, stop, _), found, count in zip(pieces, sums, counts, strict=True):
        torch.testing.assert_close(found, log_probabilities[r, start:stop].sum())
        assert count == (targets[r, start:stop] != MASKED).sum()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 300), st.integers(1, 200), st.integers(1, 4))
def test_a_sequences_bits_do_not_depend_on_where_it_lies_or_what_lies_beside_it(
    seed: int, start: int, length: int, rows: int
) -> None:
    sequence = numbers(seed, length)

    def found(first: int, rows: int, others: float) -> Tensor:
        everything = torch.full((rows, 512), others)
        everything[rows - 1, first : first + length] = sequence
        pieces = torch.tensor([[0, 0, 0, 1]] * (rows - 1) + [[rows - 1, first, first + length, 0]])
        return sequence_sums(everything, torch.zeros(rows, 512, dtype=torch.int64), pieces)[0][-1]

    assert torch.equal(found(0, 1, 0.0), found(start, rows, 3.0))


def test_the_gradient_of_a_sum_reaches_its_own_positions_alone() -> None:
    log_probabilities, targets = row(seed=2)
    log_probabilities.requires_grad_()
    sums, _ = sequence_sums(log_probabilities, targets, torch.tensor([[1, 3, 9, 0], [1, 9, 12, 1], [2, 0, 24, 2]]))
    (found,) = torch.autograd.grad((sums * torch.tensor([2.0, 3.0, 5.0])).sum(), log_probabilities)
    expected = torch.zeros(3, CONTEXT)
    expected[1, 3:9], expected[1, 9:12], expected[2] = 2, 3, 5
    assert torch.equal(found, expected)


def test_a_micro_batch_without_pairs_has_no_loss_and_no_gradient() -> None:
    log_probabilities, targets = row(seed=3)
    log_probabilities.requires_grad_()
    sums, counts = sequence_sums(log_probabilities, targets, torch.zeros(0, 4, dtype=torch.int64))
    for loss in (*(loss(sums, counts, wish()) for loss in LOSSES.values()), bradley_terry(sums)):
        assert loss.sum().item() == 0
        assert not torch.autograd.grad(loss.sum(), log_probabilities, retain_graph=True)[0].any()


def test_pairs_are_neighbours_and_a_tie_is_not_ranked_right() -> None:
    scores = torch.tensor([3.0, 1.0, -2.0, 5.0, 4.0, 4.0])
    assert margins(scores).tolist() == [2, -7, 0]
    assert ranked_right(scores).tolist() == [True, False, False]


def test_every_loss_a_recipe_can_name_is_on_the_menu() -> None:
    named = Dpo.model_json_schema()["properties"]["loss"]["enum"]
    assert set(named) == set(LOSSES)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=5), st.floats(0.01, 2), st.floats(0, 0.49))
def test_sigmoid_is_the_papers_formula(pairs: list[tuple[float, float]], beta: float, smoothing: float) -> None:
    log_ratios = torch.tensor(pairs).flatten()
    found = sigmoid(log_ratios, torch.ones(len(log_ratios)), wish(beta=beta, label_smoothing=smoothing))
    for (chosen, rejected), loss in zip(pairs, found, strict=True):
        margin = beta * (chosen - rejected)
        right, wrong = math.log1p(math.exp(-margin)), math.log1p(math.exp(margin))  # -log sigmoid(+-margin)
        assert loss.item() == pytest.approx((1 - smoothing) * right + smoothing * wrong, rel=1e-4, abs=1e-6)


def test_an_untrained_policy_loses_log_two_whatever_the_settings() -> None:
    for objective in (wish(), wish(label_smoothing=0.3), wish(length_normalised=True)):
        losses = sigmoid(torch.zeros(4), tokens(1, 2, 3, 4), objective)
        assert losses.tolist() == pytest.approx([math.log(2)] * 2)


def test_a_smoothed_loss_pulls_back_from_certainty() -> None:
    log_ratios = torch.tensor([400.0, 0.0], requires_grad=True)
    (plain,) = torch.autograd.grad(sigmoid(log_ratios, tokens(1, 1), wish(beta=1)).sum(), log_ratios)
    (smoothed,) = torch.autograd.grad(sigmoid(log_ratios, tokens(1, 1), wish(label_smoothing=0.2)).sum(), log_ratios)
    assert plain.tolist() == [0, 0]
    assert smoothed.tolist() == pytest.approx([0.02, -0.02])  # beta * the share of wrong labels


def test_length_normalised_means_log_ratios_a_token() -> None:
    log_ratios, counts = torch.tensor([-6.0, -8.0]), tokens(3, 8)  # summed: chosen ahead by 2; a token: behind by 1
    assert sigmoid(log_ratios, counts, wish(beta=1)).item() == pytest.approx(math.log1p(math.exp(-2)))
    normalised = sigmoid(log_ratios, counts, wish(beta=1, length_normalised=True))
    assert normalised.item() == pytest.approx(math.log1p(math.exp(1)))


def test_ipo_asks_for_a_margin_of_half_a_beta_s_inverse_a_token() -> None:
    log_ratios, counts = torch.tensor([12.0, -2.0, 6.0, -6.0]), tokens(3, 2, 2, 3)  # margins a token: 5, 5
    assert ipo(log_ratios, counts, wish(loss="ipo", beta=0.1)).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert ipo(log_ratios, counts, wish(loss="ipo", beta=0.5)).tolist() == pytest.approx([16, 16])


def test_bradley_terry_is_minus_the_log_of_the_chosen_ones_probability() -> None:
    scores = torch.tensor([2.0, 1.0, 1.0, 2.0])
    odds = [math.e**2 / (math.e**2 + math.e), math.e / (math.e**2 + math.e)]
    assert bradley_terry(scores).tolist() == pytest.approx([-math.log(p) for p in odds])


def test_hopeless_pairs_have_finite_losses_and_gradients() -> None:
    scores = torch.tensor([-3000.0, 3000.0], requires_grad=True)
    for loss in (bradley_terry(scores), sigmoid(scores, tokens(1, 1), wish(beta=1, label_smoothing=0.1))):
        (gradient,) = torch.autograd.grad(loss.sum(), scores)
        assert loss.isfinite().all() and gradient.isfinite().all()
    assert bradley_terry(scores).item() == 6000


def test_a_sequence_without_trained_tokens_is_no_division_by_zero() -> None:
    assert ipo(torch.zeros(2), tokens(0, 1), wish(loss="ipo")).item() == pytest.approx(25)
