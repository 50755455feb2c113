"""Models of transformers: loaded from a folder or made new from a config.json. The only file that imports it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.errors import RecipeError

REASON = 200  # characters; transformers goes on with lists of all that it knows


def pretrained(folder: Path, *, scores: bool = False) -> nn.Module:
    """The float32 model in `folder`, which `folder.check_folder` has passed; never code from the folder.

    With `scores` it gets one output in place of the vocabulary, whose weights are new where the folder has none.

    Raises RecipeError for an architecture that is no causal language model of transformers, and for weights that are
    not all there (transformers would draw them at random).
    """
    transformers = quiet_transformers()
    try:
        module, found = _auto(transformers, scores).from_pretrained(
            folder,
            **({"num_labels": 1} if scores else {}),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, with both shapes
            output_loading_info=True,
        )
    except Exception as error:  # its own, torch's, safetensors' and the hub's
        raise _refused(folder, error) from error
    _check_whole(folder, type(module).__name__, found, new="score.weight" if scores else "")
    return module.train()  # type: ignore[no-any-return]


def new(config_file: Path, eos: int) -> nn.Module:
    """The architecture of a config.json, float32, with new weights from torch's default generator.

    Documents end and begin with the id `eos`, whatever the file says. Raises RecipeError as `pretrained` does.
    """
    transformers = quiet_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(config_file, trust_remote_code=False)
        config.eos_token_id = config.bos_token_id = eos
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # its own, torch's, safetensors' and the hub's
        raise _refused(config_file, error) from error
    return module.train()  # type: ignore[no-any-return]


def score_of(module: Any, name: Path) -> nn.Module:
    """The layer that gives the one number of `pretrained(scores=True)`. RecipeError where it has another name."""
    score = getattr(module, "score", None)
    if not isinstance(score, nn.Linear):
        raise RecipeError(f"{type(module).__name__} of {name} has no linear layer `score`; choose another architecture")
    return score


def hidden(module: Any, tokens: Tensor, positions: Tensor | None) -> Tensor:
    """What the output embedding reads, [batch, time, width], for int64 [batch, time].

    Positions that start again at 0 tell transformers where sequences stand apart in a row.
    """
    found: Tensor = module.base_model(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
    return found


def plain_head(module: Any) -> bool:
    """Whether the logits are the hidden state times the output embedding and nothing else, found out on a few tokens.

    Some architectures scale or cap them, or add a bias; their logits have to be whole in memory.
    """
    head, training = module.get_output_embeddings(), module.training
    if getattr(head, "weight", None) is None:
        return False
    tokens = torch.arange(8).unsqueeze(0) % module.get_input_embeddings().num_embeddings
    module.eval()
    with torch.no_grad():
        logits = module(input_ids=tokens, use_cache=False).logits
        ours = F.linear(hidden(module, tokens, None), head.weight.to(logits.dtype))
    module.train(training)
    return logits.shape == ours.shape and torch.allclose(logits, ours, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def keeps_apart(module: Any) -> bool:
    """Whether sequences of one row do not see each other where positions start again, found out on a few tokens.

    Recurrent models, and some whose positions are a bias, let them mix.
    """
    tokens = torch.arange(1, 9).unsqueeze(0) % module.get_input_embeddings().num_embeddings
    positions, training = torch.arange(4).repeat(2).unsqueeze(0), module.training
    module.eval()
    together, alone = hidden(module, tokens, positions)[:, 4:], hidden(module, tokens[:, 4:], None)
    module.train(training)
    return bool((together - alone).norm() <= 1e-4 * alone.norm())


def whole_loss(module: Any, tokens: Tensor, targets: Tensor, positions: Tensor | None) -> Tensor:
    """The summed cross-entropy of the logits at each position with `targets` there, a float32 scalar."""
    return token_losses(module, tokens, targets, positions).sum()


def token_losses(module: Any, tokens: Tensor, targets: Tensor, positions: Tensor | None) -> Tensor:
    """The cross-entropy of each position, float32 [batch * time], 0 where masked; the logits are whole in memory."""
    logits = module(input_ids=tokens, position_ids=positions, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")


def decoder(module: Any) -> Callable[[Tensor], Tensor]:
    """Logits of the tokens [1, time] that follow on those that it was shown before."""
    past: list[Any] = [None]

    def logits(tokens: Tensor) -> Tensor:
        found = module(input_ids=tokens, past_key_values=past[0], use_cache=True)
        past[0] = found.past_key_values
        shown: Tensor = found.logits
        return shown

    return logits


def checkpoint_activations(module: Any, name: Path) -> None:
    """Compute activations again in backward. Raises RecipeError where the architecture cannot."""
    try:
        module.activation_checkpointing_enable()
    except ValueError as error:
        raise RecipeError(f"compute.checkpointing cannot be had for {name} ({error}); set it to none") from error


def save(module: Any, folder: Path) -> None:
    """config.json, generation_config.json and safetensors, as `save_pretrained` writes them."""
    module.save_pretrained(folder)


def quiet_transformers() -> Any:
    """The library, imported late, without the bars and reports that every replica would send to one terminal."""
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    return transformers


def _auto(transformers: Any, scores: bool) -> Any:
    return transformers.AutoModelForSequenceClassification if scores else transformers.AutoModelForCausalLM


def _check_whole(folder: Path, architecture: str, found: dict[str, Any], new: str) -> None:
    missing, misshapen = sorted({*found["missing_keys"]} - {new}), sorted(found["mismatched_keys"])
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
