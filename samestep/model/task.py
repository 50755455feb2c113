"""What is trained, as the rest of the library sees it: a module, its loss, how it is saved and how it is sampled."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from samestep.errors import RecipeError
from samestep.model import backend
from samestep.model.backend import Backend
from samestep.model.folder import resolve, write_tokenizer
from samestep.model.objectives import OBJECTIVES, Objective
from samestep.model.sample import sample
from samestep.recipe.schema import Recipe

if TYPE_CHECKING:
    from samestep.data.feed import MicroBatch


@dataclass(frozen=True)
class Task:
    """What a replica needs to know of a model. Micro-batches are brought to where `module` is.

    loss: the sum over the terms of a micro-batch, a float32 scalar; dropout is drawn from torch's default generator
        while `module` is in training mode. Its gradients have to be copied before the next loss: they share memory.
    measure: that loss, and how many pairs are ranked right; None where there are no pairs.
    terms: (target tokens, pieces) -> what a sum of losses is divided by: target tokens, or pairs.
    log_probabilities: float32[pieces], what dpo needs of its reference; None for other objectives.
    origin: the folder of the tokenizer and its chat template; None for a tokenizer trained on the corpus.
    save: writes a Hugging Face folder with the tokenizer's files, made where it does not exist.
    generate: (tokens, count, temperature, generator) -> at most `count` new token ids; leaves the mode as it was. None
        for a model without a vocabulary.
    """

    module: nn.Module
    loss: Callable[["MicroBatch"], Tensor]
    measure: Callable[["MicroBatch"], tuple[Tensor, Tensor | None]]
    terms: Callable[[int, int], int]
    log_probabilities: Callable[["MicroBatch"], Tensor] | None
    origin: Path | None
    save: Callable[[Path], None]
    generate: Callable[[list[int], int, float, Generator], list[int]] | None


def build(recipe: Recipe, *, seed: int, vocabulary: int, eos: int, tokenizer_file: Path, base: Path) -> Task:
    """The task of `recipe`, with float32 parameters on the CPU.

    New weights follow from `seed`, an int64 mixed by the caller: it seeds torch's default generator.
    `vocabulary`, `eos` and `tokenizer_file` are the data's; `base` is the folder that the recipe's paths start from.
    Raises RecipeError for a model that cannot be had, does not fit the data or keeps batch statistics.
    """
    torch.manual_seed(seed)
    folder = resolve(recipe.model, base)
    model = backend.build(recipe, folder, base, vocabulary, eos)
    refuse_batch_statistics(model.module)
    origin = _tokenizer_origin(recipe, base, folder)

    def save(target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        model.save(target)
        write_tokenizer(target, tokenizer_file, origin, eos, recipe.data.context)

    def place() -> torch.device:
        return next(model.module.parameters()).device

    objective = OBJECTIVES[recipe.objective.kind](model, recipe)
    return Task(
        model.module,
        loss=lambda batch: _computed(recipe, objective, batch.to(place()))[0],
        measure=lambda batch: _computed(recipe, objective, batch.to(place())),
        terms=objective.terms,
        log_probabilities=_log_probabilities(recipe, objective, place),
        origin=origin,
        save=save,
        generate=None if model.decoder is None else _generate(recipe, model, eos),
    )


def refuse_batch_statistics(module: nn.Module) -> None:
    """Raises RecipeError for layers such as BatchNorm, which average over the batches that one replica has seen."""
    for name, layer in module.named_modules():
        if getattr(layer, "running_mean", None) is not None:
            raise RecipeError(
                f"{name or 'the model'} is a {type(layer).__name__} with running statistics, whose numbers follow "
                "the micro-batches that each replica happens to see; use LayerNorm or GroupNorm"
            )


def _tokenizer_origin(recipe: Recipe, base: Path, folder: Path | None) -> Path | None:
    """The folder that the data's tokenizer came from; None for one trained on the corpus."""
    if recipe.data.tokenizer is None:
        return folder
    given = base / recipe.data.tokenizer
    return given if given.is_dir() else given.parent


def _computed(recipe: Recipe, objective: Objective, batch: "MicroBatch") -> tuple[Tensor, Tensor | None]:
    with _autocast(recipe, batch.tokens.device):
        return objective.loss(batch)


def _log_probabilities(
    recipe: Recipe, objective: Objective, place: Callable[[], torch.device]
) -> Callable[["MicroBatch"], Tensor] | None:
    compute = objective.log_probabilities
    if compute is None:
        return None

    def log_probabilities(batch: "MicroBatch") -> Tensor:
        batch = batch.to(place())
        with _autocast(recipe, batch.tokens.device):
            return compute(batch)[0]

    return log_probabilities


def _generate(recipe: Recipe, model: Backend, eos: int) -> Callable[[list[int], int, float, Generator], list[int]]:
    def generate(tokens: list[int], count: int, temperature: float, generator: Generator) -> list[int]:
        assert model.decoder is not None
        training, device = model.module.training, next(model.module.parameters()).device
        model.module.eval()
        try:
            with _autocast(recipe, device):
                return sample(
                    model.decoder,
                    tokens,
                    count,
                    temperature,
                    generator,
                    context=recipe.data.context,
                    eos=eos,
                    device=device,
                )
        finally:
            model.module.train(training)

    return generate


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    # Its cache of cast weights is shared by all threads, and here each weight is used once in a forward pass.
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.model.dtype == "bfloat16", cache_enabled=False)
