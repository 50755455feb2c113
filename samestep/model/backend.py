"""The model of a recipe behind one face, whichever library it comes from and whether it carries adapters."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.errors import RecipeError
from samestep.model import gpt, huggingface, llama, lora
from samestep.model.folder import check_config, check_positions, check_vocabulary
from samestep.model.layers import product_dtype
from samestep.model.losses import ROWS, cross_entropy, cross_entropy_sum
from samestep.model.sample import Decoder
from samestep.model.scratch import Scratch
from samestep.recipe.schema import Recipe


@dataclass(frozen=True)
class Backend:
    """module: in training mode, with float32 parameters where they are trained.
    hidden: (tokens, positions) -> what the head reads, [batch, time, width].
    head: the output embedding [vocabulary, width]; None where logits are more than a product with it.
    decoder: see sample.py. save: weights and configuration, without the tokenizer.
    score: hidden states [k, width] -> [k, 1], of a reward model.
    without_adapters: the model as it is without them, while the context is open.
    scratch: memory for `loss`, of a `hidden` that takes it; see there for when gradients have to be copied.
    """

    module: nn.Module
    hidden: Callable[..., Tensor]
    head: Callable[[], Tensor] | None
    decoder: Callable[[], Decoder] | None
    save: Callable[[Path], None]
    score: nn.Module | None = None
    without_adapters: Callable[[], AbstractContextManager[Any]] | None = None
    scratch: Scratch | None = None

    def loss(self, tokens: Tensor, targets: Tensor, positions: Tensor | None, skip_masked: bool) -> Tensor:
        """The summed cross-entropy, a float32 scalar."""
        if self.head is None:
            return huggingface.whole_loss(self.module, tokens, targets, positions)
        weight, hidden, loss = self.head(), self.hidden, cross_entropy_sum
        if self.scratch is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.scratch.room(weight, product_dtype(weight), min(tokens.numel(), ROWS[tokens.device.type]))
            hidden, loss = partial(hidden, scratch=self.scratch), partial(loss, scratch=self.scratch)
        return loss(hidden(tokens, positions).flatten(0, 1), weight, targets.flatten(), skip_masked=skip_masked)

    def token_losses(self, tokens: Tensor, targets: Tensor, positions: Tensor | None) -> Tensor:
        """The cross-entropy of each position, float32 [batch, time], 0 where masked."""
        if self.head is None:
            losses = huggingface.token_losses(self.module, tokens, targets, positions)
        else:
            losses = cross_entropy(self.hidden(tokens, positions).flatten(0, 1), self.head(), targets.flatten())
        return losses.view(targets.shape)


def build(recipe: Recipe, folder: Path | None, base: Path, vocabulary: int, eos: int) -> Backend:
    """New weights come from torch's default generator. `folder`: where trained ones are, None for new ones.

    Raises RecipeError for a model that cannot be had, or does not fit the data.
    """
    if recipe.model.family_used:
        return _new(recipe, vocabulary, eos)
    described = base / str(recipe.model.config) if folder is None else folder / "config.json"
    config = check_config(described)
    check_vocabulary(config, vocabulary, described)
    check_positions(config, recipe.data.context, described)
    shape = None if folder is None else llama.shape_of(config, recipe.data.context)
    if folder is not None and shape is not None:
        return _llama(recipe, folder, shape)
    return _transformers(recipe, folder, described, eos)


def _new(recipe: Recipe, vocabulary: int, eos: int) -> Backend:
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
    return _of_gpt(module, partial(gpt.save, module, eos=eos))


def _of_gpt(module: gpt.GPT, save: Callable[[Path], None]) -> Backend:
    scratch = Scratch(tied=module.shape.tied and module.head.requires_grad)
    return Backend(module, module.model, lambda: module.head, partial(_decoder, module), save, scratch=scratch)


def _llama(recipe: Recipe, folder: Path, shape: gpt.Shape) -> Backend:
    scores, wish = recipe.objective.kind == "reward", recipe.model
    module = llama.load(
        folder,
        shape,
        frozen=torch.bfloat16 if wish.lora and wish.dtype == "bfloat16" else None,
        checkpointing=recipe.compute.checkpointing == "full",
        scores=scores,
    )
    save = partial(llama.save, module, origin=folder)
    if isinstance(module, gpt.GPT):
        found = _of_gpt(module, save)
    else:
        found = Backend(module, module.model, None, None, save, module.score)
    return _adapted(found, recipe, folder, None if scores or shape.tied else getattr(module, "lm_head", None))


def _transformers(recipe: Recipe, folder: Path | None, described: Path, eos: int) -> Backend:
    scores = recipe.objective.kind == "reward"
    module: Any = huggingface.new(described, eos) if folder is None else huggingface.pretrained(folder, scores=scores)
    if recipe.compute.checkpointing == "full":
        huggingface.checkpoint_activations(module, folder or described)
    _check_apart(recipe, module, folder or described)
    hidden, save = partial(huggingface.hidden, module), partial(huggingface.save, module)
    if scores:
        found = Backend(module, hidden, None, None, save, huggingface.score_of(module, described))
    else:
        plain = huggingface.plain_head(module)
        head = (lambda: module.get_output_embeddings().weight) if plain else None
        found = Backend(module, hidden, head, partial(huggingface.decoder, module), save)
    return _adapted(found, recipe, folder, None if scores else module.get_output_embeddings())


def _check_apart(recipe: Recipe, module: nn.Module, name: Path) -> None:
    pairs = recipe.objective.kind in ("dpo", "reward")  # both sequences of a pair stand in one row
    several = pairs or (recipe.objective.kind == "sft" and recipe.data.packing)
    if several and not huggingface.keeps_apart(module):
        raise RecipeError(
            f"{type(module).__name__} of {name} mixes the samples of a row, as it knows nothing of where one ends; "
            + ("choose another architecture" if pairs else "set data.packing to false")
        )


def _adapted(found: Backend, recipe: Recipe, folder: Path | None, head: nn.Module | None) -> Backend:
    """With the adapters that the recipe asks for."""
    if recipe.model.lora is None:
        return found
    assert folder is not None  # the recipe refuses adapters of new weights
    score = None if found.score is None else next(n for n, m in found.module.named_modules() if m is found.score)
    adapted = lora.adapt(found.module, recipe.model.lora, head=head if score is None else found.score, score=score)
    task = "CAUSAL_LM" if score is None else "SEQ_CLS"
    return replace(
        found,
        save=partial(lora.save, adapted, base=folder.resolve(), task=task),
        score=None if score is None else found.module.get_submodule(score),
        scratch=Scratch(tied=False) if found.scratch else None,
        without_adapters=adapted.disable_adapter,
    )


def _decoder(module: gpt.GPT) -> Decoder:
    past = gpt.Past()
    return lambda tokens: F.linear(module.model(tokens, past=past), module.head)
