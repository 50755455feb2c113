"""A Llama that transformers wrote, loaded into the built-in model without importing transformers."""

import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from samestep.errors import RecipeError
from samestep.model.blank import blank
from samestep.model.folder import WEIGHTS, check_config, weight_files, write_json
from samestep.model.gpt import GPT, INIT_STD, ROTARY_BASE, Body, Shape

# The values under which LlamaForCausalLM computes what GPT does; a key that is not there has its first one.
PLAIN: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0.0,),
    "rope_scaling": (None,),
}


def shape_of(config: dict[str, Any], context: int) -> Shape | None:
    """The shape that a config.json describes, for rows of `context` tokens; None where it is no plain Llama."""
    rotary = config.get("rope_parameters") or {}
    plain = all(config.get(key, values[0]) in values for key, values in PLAIN.items())
    padding = config.get("pad_token_id")
    no_row = padding is not None and padding >= config.get("vocab_size", 0)  # left to transformers, which refuses it
    if not plain or no_row or rotary.get("rope_type", "default") != "default":
        return None
    try:
        return Shape(
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            heads=config["num_attention_heads"],
            vocabulary=config["vocab_size"],
            context=context,
            tied=config.get("tie_word_embeddings", False),
            groups=config.get("num_key_value_heads"),
            head_width=config.get("head_dim"),
            inner_width=config["intermediate_size"],
            norm_epsilon=config.get("rms_norm_eps", 1e-6),
            rotary_base=rotary.get("rope_theta", config.get("rope_theta", ROTARY_BASE)),
            padding=padding,
        )
    except KeyError:  # left to transformers, which has defaults for all
        return None


class Scored(nn.Module):
    """A body with one number for each hidden state in place of the vocabulary: LlamaForSequenceClassification."""

    def __init__(self, shape: Shape, checkpointing: bool) -> None:
        super().__init__()
        self.model = Body(shape, checkpointing)
        self.score = nn.Linear(shape.width, 1, bias=False)


def load(
    folder: Path,
    shape: Shape,
    *,
    frozen: torch.dtype | None = None,
    checkpointing: bool = False,
    scores: bool = False,
) -> GPT | Scored:
    """The model in `folder` with its weights mapped from the files: shared by all processes until they are written.

    Weights are float32, those in another dtype converted; matrices stay as they are stored where that is `frozen`.
    With `scores` a layer for them is new where the folder has none, drawn from torch's default generator.
    Raises RecipeError for tensors that are missing or have another shape than config.json says.
    """
    with blank():
        module = Scored(shape, checkpointing) if scores else GPT(shape, checkpointing)
    wanted, stored = dict(module.named_parameters()), _stored(folder)
    if scores:
        stored.setdefault("score.weight", torch.randn(1, shape.width) * INIT_STD)
    for name, parameter in wanted.items():
        _check(folder, name, stored.get(name), parameter)
    weights = {name: stored[name] for name in wanted}
    kept = {name: w if w.dtype == frozen and w.dim() > 1 else w.float() for name, w in weights.items()}
    module.load_state_dict(kept, assign=True)
    return module.train()


def save(module: GPT | Scored, folder: Path, origin: Path) -> None:
    """Float32 model.safetensors beside the config.json and generation_config.json of `origin`, where it was loaded."""
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in module.state_dict().items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = {key: v for key, v in check_config(origin / "config.json").items() if key != "torch_dtype"}
    if isinstance(module, Scored):
        config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
        config |= {"label2id": {"LABEL_0": 0}}
    write_json(folder / "config.json", config | {"dtype": "float32"})
    if (origin / "generation_config.json").is_file():
        shutil.copyfile(origin / "generation_config.json", folder / "generation_config.json")


def _stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in weight_files(folder) for name, tensor in safetensors.torch.load_file(file).items()}


def _check(folder: Path, name: str, stored: Tensor | None, wanted: Tensor) -> None:
    if stored is None:
        raise RecipeError(
            f"{folder} lacks the tensor {name}; name a folder with the weights of a whole causal language model"
        )
    if stored.shape != wanted.shape:
        raise RecipeError(
            f"{folder} has {name} in the shape {list(stored.shape)} but its config.json asks for "
            f"{list(wanted.shape)}; fetch both files again from one place"
        )
