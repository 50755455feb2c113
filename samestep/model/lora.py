"""Low-rank adapters, through peft: a module keeps its weights and learns a small product beside each."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from samestep.errors import RecipeError
from samestep.recipe.load import did_you_mean
from samestep.recipe.schema import Lora

SHOWN = 12  # names in an error


def adapt(module: nn.Module, wish: Lora, *, head: nn.Module | None, score: str | None = None) -> Any:
    """Puts adapters into `module`, in place, and gives the PeftModel around it; only they require gradients.

    New adapters come from torch's default generator and change nothing yet. `head`, the output embedding, gets none.
    `score`: the name of a layer that is trained whole. Raises RecipeError for a target that no linear layer has.
    """
    import peft

    targets = _targets(module, wish, head)
    config = peft.LoraConfig(
        r=wish.rank,
        lora_alpha=wish.alpha,
        target_modules=targets,
        fan_in_fan_out=any(_is_transposed(module.get_submodule(name)) for name in targets),
        lora_dropout=wish.dropout,
        use_dora=wish.dora,
        use_rslora=wish.rslora,
        modules_to_save=[score] if score else None,
    )
    with quiet():
        adapted = peft.get_peft_model(module, config)
    layer: Any
    for layer in module.modules():
        if hasattr(layer, "cast_input_dtype_enabled"):
            layer.cast_input_dtype_enabled = False  # autocast casts; peft would first make a float32 copy of each input
    return adapted


def save(adapted: Any, folder: Path, base: Path, task: str) -> None:
    """adapter_config.json and adapter_model.safetensors, for the model in `base`; task: peft's name of it."""
    config = adapted.peft_config["default"]
    config.base_model_name_or_path, config.task_type = str(base), task
    with quiet():
        adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a template to be filled in


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning that peft 0.21 asks transformers 5.23 by an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        yield


def _targets(module: nn.Module, wish: Lora, head: nn.Module | None) -> list[str]:
    linear = [name for name, layer in module.named_modules() if _is_linear(layer) and layer is not head]
    if wish.targets is None:
        return sorted(linear)
    for target in wish.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            there = _kinds(linear)
            hint = did_you_mean(target, there) or f"; its linear layers are {', '.join(there[:SHOWN])}"
            raise RecipeError(f"model.lora.targets asks for {target}, which no linear layer of the model has{hint}")
    return [name for name in linear if any(name == t or name.endswith(f".{t}") for t in wish.targets)]


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or _is_transposed(layer)


def _is_transposed(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D"  # what GPT-2 of transformers has


def _kinds(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})
