"""A trained model as others load it: through plain transformers or peft, merged, and compared bit for bit."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samestep.errors import RecipeError
from samestep.model.huggingface import quiet_transformers
from samestep.model.lora import quiet

ADAPTER = "adapter_config.json"
PROBE = "The quick brown fox jumps over the lazy dog. def add(a, b): return a + b  # 1 + 2 = 3\nÄpfel, 東京, 🙂\n"
PROBE_TOKENS = 64  # at most; every architecture that is trained here takes as many
BASE = "base_model_name_or_path"


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def base_folder(adapter: Path) -> Path:
    """The folder of the base model that the adapter in `adapter` names. RecipeError where it is not there."""
    named = json.loads((adapter / ADAPTER).read_text(encoding="utf-8")).get(BASE)
    if not named or not Path(named).is_dir():
        raise RecipeError(
            f"{adapter / ADAPTER} names {named} as its base model, which is no folder here; "
            f"put the base model back there, or write its present folder as {BASE}"
        )
    return Path(named)


def load(folder: Path, *, reward: bool, base: Path | None = None) -> Any:
    """The float32 model in `folder` on the CPU, in evaluation mode, as its users load it: by transformers, or with
    `base` (the folder of the base model) by peft on top of it. `reward`: the model gives one score.

    Raises RecipeError with the library's reason where it cannot be loaded.
    """
    try:
        module = _plain(base or folder, reward)
        return module.eval() if base is None else _adapted(module, folder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"{folder} cannot be loaded ({reason}); train again, or restore the folder") from error


def load_tokenizer(folder: Path) -> Any:
    return quiet_transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def merge(module: Any) -> Any:
    """The model under `module`, peft's, with W + scaling * B A in place of each W (arXiv 2106.09685, section 4.1), or
    DoRA's weight; peft does the sum, in float32. `module` is used up. Raises RecipeError where a sum is not finite.
    """
    try:
        return module.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise RecipeError(f"the adapter cannot be merged ({error}); export without --merge") from error


@torch.no_grad()
def probe_logits(module: Any, tokenizer: Any) -> Tensor:
    """Logits [1, tokens, vocabulary] of PROBE, or scores [1, 1] of a reward model, float32."""
    limit = getattr(module.config, "max_position_embeddings", None) or PROBE_TOKENS
    ids = tokenizer(PROBE)["input_ids"][: min(limit, PROBE_TOKENS)] or [0]
    found: Tensor = module(input_ids=torch.tensor([ids]), use_cache=False).logits
    return found.float()


def tensors(module: Any) -> dict[str, Tensor]:
    """Every stored tensor by name, without the head that peft keeps behind a trained one: no result depends on it."""
    return {name: tensor for name, tensor in module.state_dict().items() if ".original_module." not in name}


def first_difference(live: Mapping[str, Tensor], written: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that is not bit for bit the same in both, with what differs; None where all are."""
    for name in sorted(live.keys() | written.keys()):
        if name not in live or name not in written:
            return f"{name} (it is in one of them only)"
        ours, theirs = live[name], written[name]
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            return f"{name} ({ours.dtype} {list(ours.shape)}, but {theirs.dtype} {list(theirs.shape)})"
        if not torch.equal(_bits(ours), _bits(theirs)):
            return f"{name} ({int((ours != theirs).sum())} of {ours.numel()} values differ)"
    return None


def relative_difference(live: Tensor, written: Tensor) -> float:
    """The largest difference over the largest absolute value of `live`; infinite for other shapes or NaN."""
    if live.shape != written.shape:
        return math.inf
    if torch.equal(live, written):
        return 0.0
    difference = float((live - written).abs().max() / live.abs().max())
    return difference if math.isfinite(difference) else math.inf


def _plain(folder: Path, reward: bool) -> Any:
    transformers = quiet_transformers()
    asked = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    if reward:
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **asked)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **asked)


def _adapted(module: Any, folder: Path) -> Any:
    from peft import PeftModel

    with quiet():
        return PeftModel.from_pretrained(module, folder, torch_device="cpu").eval()


def _bits(tensor: Tensor) -> Tensor:
    """The bytes, so that NaN equals itself and -0 is not 0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
