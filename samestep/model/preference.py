"""Losses over pairs of sequences, one of them preferred. Sequences 2i and 2i + 1 are pair i: chosen, then rejected."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from samestep.model.losses import MASKED
from samestep.recipe.schema import Dpo


def sequence_sums(log_probabilities: Tensor, targets: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor]:
    """The summed log-probability of each sequence, float32 [k], and its number of trained tokens, int64 [k].

    `log_probabilities` is float32 [rows, context], that of each position's target and 0 where `targets`, int64 [rows,
    context], is -100. `pieces` is int64 [k, 4]: row, start, stop, sequence number; positions start..stop-1 of the row
    are one sequence. Each is moved to the start of a row of its own, so its sum does not depend on where it lay.
    """
    row, start, stop, _ = pieces[:, :, None].unbind(1)
    positions = start + torch.arange(targets.shape[1], device=targets.device)
    outside = positions >= stop
    positions = positions.masked_fill(outside, 0)
    inside = log_probabilities[row, positions].masked_fill(outside, 0)
    trained = (targets[row, positions] != MASKED) & ~outside
    return inside.sum(1), trained.sum(1)


def margins(scores: Tensor) -> Tensor:
    """Chosen minus rejected, float32 [pairs], of one score a sequence, float32 [2 * pairs]."""
    return scores[0::2] - scores[1::2]


def ranked_right(scores: Tensor) -> Tensor:
    """Whether the chosen sequence has the higher score, bool [pairs]; a tie is wrong.

    `scores` float32 [2 * pairs] are a reward model's, or for DPO log(policy / reference), whose product with beta is
    the implicit reward (Rafailov et al., arXiv 2305.18290, section 4). TRL counts alike, for length-normalised too.
    """
    return margins(scores) > 0


def bradley_terry(scores: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected), float32 [pairs], of a reward model's scores, float32 [2 * pairs].

    Bradley and Terry 1952; Ouyang et al., arXiv 2203.02155, equation 1.
    """
    return -F.logsigmoid(margins(scores))


def sigmoid(log_ratios: Tensor, counts: Tensor, objective: Dpo) -> Tensor:
    """Rafailov et al., arXiv 2305.18290, equation 7, float32 [pairs].

    `log_ratios` is log(policy / reference) of each sequence, float32 [2 * pairs], `counts` its trained tokens, int64.
    Smoothed, a label is thought wrong with that probability: Mitchell, "A note on DPO with noisy preferences and
    relationship to IPO", 2023 (conservative DPO). TRL 1.16 has this smoothing in `aot` alone: its `sigmoid` has none
    and its `robust` is another estimate (Chowdhury et al., arXiv 2403.00409).
    Length-normalised, each log-ratio is divided by its tokens: Lambert et al., arXiv 2411.15124 (length-normalized
    DPO), and TRL's `sigmoid_norm`.
    """
    scores = _per_token(log_ratios, counts) if objective.length_normalised else log_ratios
    logits = objective.beta * margins(scores)
    wrong = objective.label_smoothing
    return -(1 - wrong) * F.logsigmoid(logits) - wrong * F.logsigmoid(-logits)


def ipo(log_ratios: Tensor, counts: Tensor, objective: Dpo) -> Tensor:
    """Azar et al., arXiv 2310.12036, equation 17 with tau as `beta`, float32 [pairs]; inputs as for `sigmoid`.

    The log-ratios are always those of a token, which the paper does not say: as in TRL, whose authors have it from
    the paper's. Over sums the target 1 / (2 beta) would mean another thing for each length.
    """
    return (margins(_per_token(log_ratios, counts)) - 1 / (2 * objective.beta)) ** 2


def _per_token(log_ratios: Tensor, counts: Tensor) -> Tensor:
    return log_ratios / counts.clamp(min=1)


# (log-ratios, counts, objective) -> the loss of each pair.
LOSSES: dict[str, Callable[[Tensor, Tensor, Dpo], Tensor]] = {"sigmoid": sigmoid, "ipo": ipo}
