"""What is trained, as the rest of the library sees it: a module, its loss, how it is saved and how it is sampled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from samestep.errors import RecipeError
from samestep.model import gpt, huggingface
from samestep.model.folder import resolve, write_tokenizer
from samestep.model.sample import sample
from samestep.recipe.schema import Recipe

if TYPE_CHECKING:
    from samestep.data.feed import MicroBatch


@dataclass(frozen=True)
class Task:
    """What a replica needs to know of a model.

    loss: the sum over the target tokens of a micro-batch, a float32 scalar; dropout is drawn from torch's default
        generator while `module` is in training mode.
    save: writes a Hugging Face folder with the tokenizer's files, made where it does not exist.
    generate: (tokens, count, temperature, generator) -> at most `count` new token ids; leaves the mode as it was.
    """

    module: nn.Module
    loss: Callable[["MicroBatch"], Tensor]
    save: Callable[[Path], None]
    generate: Callable[[list[int], int, float, Generator], list[int]]


@dataclass(frozen=True)
class _Model:
    """A module in training mode and the functions that hide which library it comes from."""

    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    save: Callable[[Path], None]


def build(recipe: Recipe, *, seed: int, vocabulary: int, eos: int, tokenizer_file: Path, base: Path) -> Task:
    """The task of `recipe`, with float32 parameters on the CPU.

    New weights follow from `seed`, an int64 mixed by the caller: it seeds torch's default generator.
    `vocabulary`, `eos` and `tokenizer_file` are the data's; `base` is the folder that the recipe's paths start from.
    Raises RecipeError for a model that cannot be had, does not fit the data or keeps batch statistics.
    """
    torch.manual_seed(seed)
    folder = resolve(recipe.model, base)
    if recipe.model.family_used:
        model = _builtin(recipe, vocabulary, eos)
    else:
        model = _transformers(recipe, folder, base, vocabulary, eos)
    refuse_batch_statistics(model.module)
    origin = _tokenizer_origin(recipe, base, folder)

    def save(target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        model.save(target)
        write_tokenizer(target, tokenizer_file, origin, eos, recipe.data.context)

    return Task(model.module, _loss(recipe, model), save, _generate(recipe, model, eos))


def refuse_batch_statistics(module: nn.Module) -> None:
    """Raises RecipeError for layers such as BatchNorm, which average over the batches that one replica has seen."""
    for name, layer in module.named_modules():
        if getattr(layer, "running_mean", None) is not None:
            raise RecipeError(
                f"{name or 'the model'} is a {type(layer).__name__} with running statistics, whose numbers follow "
                "the micro-batches that each replica happens to see; use LayerNorm or GroupNorm"
            )


def _builtin(recipe: Recipe, vocabulary: int, eos: int) -> _Model:
    wish = recipe.model
    shape = gpt.Shape(
        layers=wish.layers,
        width=wish.width,
        heads=wish.heads or max(1, wish.width // 64),
        vocabulary=vocabulary,
        context=recipe.data.context,
        tied=wish.tied,
        dropout=wish.dropout,
    )
    module = gpt.GPT(shape, checkpointing=recipe.compute.checkpointing == "full")
    return _Model(module, logits=module, loss=module, save=partial(gpt.save, module, eos=eos))


def _transformers(recipe: Recipe, folder: Path | None, base: Path, vocabulary: int, eos: int) -> _Model:
    config_file = base / str(recipe.model.config)
    module = huggingface.new(config_file, eos) if folder is None else huggingface.pretrained(folder)
    huggingface.check_fits(module, vocabulary, recipe.data.context, folder or config_file)
    if recipe.compute.checkpointing == "full":
        huggingface.checkpoint_activations(module, folder or config_file)
    return _Model(
        module,
        logits=partial(huggingface.logits, module),
        loss=partial(huggingface.loss, module),
        save=partial(huggingface.save, module),
    )


def _tokenizer_origin(recipe: Recipe, base: Path, folder: Path | None) -> Path | None:
    """The folder that the data's tokenizer came from; None for one trained on the corpus."""
    if recipe.data.tokenizer is None:
        return folder
    given = base / recipe.data.tokenizer
    return given if given.is_dir() else given.parent


def _loss(recipe: Recipe, model: _Model) -> Callable[["MicroBatch"], Tensor]:
    forward = torch.compile(model.loss) if recipe.compute.compile else model.loss

    def loss(batch: "MicroBatch") -> Tensor:
        with _autocast(recipe, batch.tokens.device):
            return forward(batch.tokens, batch.targets)

    return loss


def _generate(recipe: Recipe, model: _Model, eos: int) -> Callable[[list[int], int, float, Generator], list[int]]:
    def generate(tokens: list[int], count: int, temperature: float, generator: Generator) -> list[int]:
        training, device = model.module.training, next(model.module.parameters()).device
        model.module.eval()
        try:
            with _autocast(recipe, device):
                return sample(
                    lambda window: model.logits(window.to(device)),
                    tokens,
                    count,
                    temperature,
                    generator,
                    context=recipe.data.context,
                    eos=eos,
                )
        finally:
            model.module.train(training)

    return generate


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    # Its cache of cast weights is shared by all threads, and here each weight is used once in a forward pass.
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.model.dtype == "bfloat16", cache_enabled=False)
