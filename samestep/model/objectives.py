"""What is minimised: from a model and a micro-batch to a sum of losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samestep.model import preference
from samestep.model.backend import Backend
from samestep.recipe.schema import Dpo, Recipe

if TYPE_CHECKING:
    from samestep.data.feed import MicroBatch


@dataclass(frozen=True)
class Objective:
    """loss: micro-batch -> the sum of its terms, a float32 scalar, and of pairs how many are ranked right, int64.
    terms: (target tokens, pieces) -> how many terms there are.
    log_probabilities: micro-batch -> float32[pieces] and the trained tokens of each, int64[pieces].
    """

    loss: Callable[["MicroBatch"], tuple[Tensor, Tensor | None]]
    terms: Callable[[int, int], int]
    log_probabilities: Callable[["MicroBatch"], tuple[Tensor, Tensor]] | None = None


def language(model: Backend, recipe: Recipe) -> Objective:
    """The cross-entropy of each target token. Of samples many positions have none and need no logits."""
    skip = recipe.objective.kind == "sft"

    def dense(tokens: Tensor, targets: Tensor, positions: Tensor | None) -> Tensor:
        return model.loss(tokens, targets, positions, skip)

    forward = torch.compile(dense) if recipe.compute.compile else dense
    return Objective(lambda batch: (forward(batch.tokens, batch.targets, batch.positions), None), _tokens)


def dpo(model: Backend, recipe: Recipe) -> Objective:
    """Pairs under direct preference optimization; see preference.py."""
    wish = recipe.objective
    assert isinstance(wish, Dpo)
    forward = torch.compile(model.token_losses) if recipe.compute.compile else model.token_losses

    def log_probabilities(batch: "MicroBatch") -> tuple[Tensor, Tensor]:
        assert batch.pieces is not None
        losses = forward(batch.tokens, batch.targets, batch.positions)
        return preference.sequence_sums(-losses, batch.targets, batch.pieces)

    def of_base(batch: "MicroBatch") -> Tensor:
        assert model.without_adapters is not None
        with torch.no_grad(), model.without_adapters():
            return log_probabilities(batch)[0]

    def loss(batch: "MicroBatch") -> tuple[Tensor, Tensor]:
        reference = of_base(batch) if wish.reference == "base" else batch.reference
        assert reference is not None
        sums, counts = log_probabilities(batch)
        ratios = sums - reference
        return preference.LOSSES[wish.loss](ratios, counts, wish).sum(), preference.ranked_right(ratios).sum()

    return Objective(loss, _pairs, log_probabilities)


def reward(model: Backend, recipe: Recipe) -> Objective:
    """Pairs under Bradley and Terry: the score of a sequence is read at its last token, in float32."""
    score = model.score
    assert score is not None
    forward = torch.compile(model.hidden) if recipe.compute.compile else model.hidden

    def loss(batch: "MicroBatch") -> tuple[Tensor, Tensor]:
        assert batch.pieces is not None
        row, _, stop, _ = batch.pieces.unbind(1)
        hidden = forward(batch.tokens, batch.positions)[row, stop - 1].float()
        with torch.autocast(hidden.device.type, enabled=False):
            scores = score(hidden)[:, 0]
        return preference.bradley_terry(scores).sum(), preference.ranked_right(scores).sum()

    return Objective(loss, _pairs)


def _tokens(targets: int, _pieces: int) -> int:
    return targets


def _pairs(_targets: int, pieces: int) -> int:
    return pieces // 2


OBJECTIVES: dict[str, Callable[[Backend, Recipe], Objective]] = {
    "causal": language,
    "sft": language,
    "dpo": dpo,
    "reward": reward,
}
