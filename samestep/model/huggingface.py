"""Models of transformers: loaded from a folder or made new from a config.json. The only file that imports it."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.errors import RecipeError
from samestep.model.folder import check_vocabulary

REASON = 200  # characters; transformers goes on with lists of all that it knows


def pretrained(folder: Path) -> nn.Module:
    """The float32 model in `folder`, which `folder.check_folder` has passed; never code from the folder.

    Raises RecipeError for an architecture that is no causal language model of transformers, and for weights that are
    not all there (transformers would draw them at random).
    """
    transformers = _quiet_transformers()
    try:
        module, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, with both shapes
            output_loading_info=True,
        )
    except Exception as error:  # its own, torch's, safetensors' and the hub's
        raise _refused(folder, error) from error
    _check_whole(folder, type(module).__name__, found)
    return module.train()  # type: ignore[no-any-return]


def new(config_file: Path, eos: int) -> nn.Module:
    """The architecture of a config.json, float32, with new weights from torch's default generator.

    Documents end and begin with the id `eos`, whatever the file says. Raises RecipeError as `pretrained` does.
    """
    transformers = _quiet_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(config_file, trust_remote_code=False)
        config.eos_token_id = config.bos_token_id = eos
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # its own, torch's, safetensors' and the hub's
        raise _refused(config_file, error) from error
    return module.train()  # type: ignore[no-any-return]


def check_fits(module: Any, vocabulary: int, context: int, name: Path) -> None:
    """Raises RecipeError where tokens or positions of the data have no embedding in the model from `name`."""
    check_vocabulary({"vocab_size": module.get_input_embeddings().num_embeddings}, vocabulary, name)
    positions = getattr(module.config, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise RecipeError(
            f"data.context is {context} but max_position_embeddings in {name} is {positions}; "
            f"set data.context to {positions} or less"
        )


def logits(module: nn.Module, tokens: Tensor) -> Tensor:
    """Logits [batch, time, vocabulary] for int64 [batch, time]."""
    found: Tensor = module(input_ids=tokens, use_cache=False).logits
    return found


def loss(module: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """The summed cross-entropy of the logits at each position with `targets` there, a float32 scalar.

    The logits are whole in memory: what an architecture does to them (scale, cap) is between it and its head.
    """
    return F.cross_entropy(logits(module, tokens).flatten(0, 1).float(), targets.flatten(), reduction="sum")


def checkpoint_activations(module: Any, name: Path) -> None:
    """Compute activations again in backward. Raises RecipeError where the architecture cannot."""
    try:
        module.activation_checkpointing_enable()
    except ValueError as error:
        raise RecipeError(f"compute.checkpointing cannot be had for {name} ({error}); set it to none") from error


def save(module: Any, folder: Path) -> None:
    """config.json, generation_config.json and safetensors, as `save_pretrained` writes them."""
    module.save_pretrained(folder)


def _quiet_transformers() -> Any:
    """The library, imported late, without the bars and reports that every replica would send to one terminal."""
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    return transformers


def _check_whole(folder: Path, architecture: str, found: dict[str, Any]) -> None:
    missing, misshapen = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    if misshapen:
        name, stored, wanted = misshapen[0]
        raise RecipeError(
            f"{folder} has {name} in the shape {list(stored)} but its config.json asks for {list(wanted)}; "
            "fetch both files again from one place"
        )
    if missing:
        raise RecipeError(
            f"{folder} lacks {len(missing)} of the tensors of {architecture}, such as {missing[0]}; "
            "name a folder with the weights of a causal language model"
        )


def _refused(asked: Path, error: Exception) -> RecipeError:
    reason = " ".join(str(error).split())
    return RecipeError(
        f"transformers cannot make a causal language model of {asked} ({reason[:REASON]}); "
        "choose an architecture that it has itself, with its weights as safetensors"
    )
