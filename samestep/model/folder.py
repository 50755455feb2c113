"""Model folders in the Hugging Face layout: found, checked and given their tokenizer files. No torch, no transformers.

What can be known to be wrong from the files is refused here, before anything that takes time is started.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from samestep.errors import RecipeError
from samestep.recipe.schema import Model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights cut into several files
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
COMPANIONS = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
FROM_HUB = ["config.json", "generation_config.json", "model*.safetensors", INDEX, TOKENIZER, *COMPANIONS]

Config = dict[str, Any]


def resolve(model: Model, base: Path) -> Path | None:
    """The checked folder of `model.path` (from `base`, the recipe's folder) or of `model.name`; None for new weights.

    A name is looked up in the local hub cache first and only then on the hub. Raises RecipeError as `check_folder`
    and `check_config` do, and for a name that is in neither place.
    """
    if model.config is not None:
        check_config(base / model.config)
    if model.path is None and model.name is None:
        return None
    folder = base / model.path if model.path is not None else _snapshot(str(model.name))
    check_folder(folder)
    return folder


def check_folder(folder: Path, tokenizer_file: Path | None = None) -> None:
    """Refuse a folder that cannot be trained from; `tokenizer_file` is its own tokenizer.json by default.

    Raises RecipeError: no folder, no or unreadable config.json, no safetensors, a missing part of them, quantized
    weights, or a tokenizer with more tokens than the embedding.
    """
    if not folder.is_dir():
        raise RecipeError(
            f"model.path asks for {folder}, which is no folder; name one with config.json and {WEIGHTS}, "
            "or give a hub name as model.name"
        )
    config = check_config(folder / "config.json")
    _check_weights(folder)
    if "quantization_config" in config:
        raise RecipeError(f"{folder} holds quantized weights, which cannot be trained; name the folder they came from")
    tokenizer_file = tokenizer_file or folder / TOKENIZER
    if tokenizer_file.is_file():
        check_vocabulary(config, tokenizer_size(tokenizer_file), folder / "config.json")


def check_config(file: Path) -> Config:
    """The content of a config.json. Raises RecipeError where there is none, or none that names an architecture."""
    config = _json(file)
    if "model_type" not in config:
        raise RecipeError(f"{file} has no model_type, so it names no architecture; take the config.json of a model")
    return config


def check_vocabulary(config: Config, tokens: int, file: Path) -> None:
    """Raises RecipeError where a tokenizer of `tokens` tokens is larger than the embedding that `config` describes."""
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if rows is not None and tokens > rows:
        raise RecipeError(
            f"the tokenizer has {tokens} tokens but vocab_size in {file} is {rows}, so some have no embedding; "
            "use the tokenizer that the model was made with, or a smaller one"
        )


def check_positions(config: Config, context: int, file: Path) -> None:
    """Raises RecipeError where a row of `context` tokens is longer than the model that `config` describes can read."""
    positions = config.get("max_position_embeddings")
    if positions is not None and context > positions:
        raise RecipeError(
            f"data.context is {context} but max_position_embeddings in {file} is {positions}; "
            f"set data.context to {positions} or less"
        )


def tokenizer_size(file: Path) -> int:
    """One more than the largest token id in a tokenizer.json. Raises RecipeError where it cannot be read."""
    tokenizer = _json(file)
    return 1 + max(_token_ids(tokenizer).values(), default=-1)


def write_tokenizer(folder: Path, tokenizer_file: Path, origin: Path | None, eos: int, context: int) -> None:
    """Put `tokenizer_file` and what AutoTokenizer reads beside it into `folder`.

    `origin` is the folder that the tokenizer came from: its settings and chat template go along. Without one, or
    where it has none, `eos` (an id) becomes the only special token and `context` (tokens) the longest input.
    """
    shutil.copyfile(tokenizer_file, folder / TOKENIZER)
    for name in COMPANIONS:
        if origin is not None and (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    if not (folder / TOKENIZER_CONFIG).is_file():
        end = next(token for token, number in _token_ids(_json(tokenizer_file)).items() if number == eos)
        special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), end)
        write_json(
            folder / TOKENIZER_CONFIG,
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **special},
        )


def write_json(file: Path, content: Config) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _json(file: Path) -> Config:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"cannot read {file} ({error.strerror}); a model folder holds config.json, {WEIGHTS} and {TOKENIZER}"
        ) from error
    except ValueError as error:
        raise RecipeError(f"{file} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{file} holds no JSON object; fetch it again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model folder: one, or those that its index names. Empty where there are none.

    Raises RecipeError for an index that names files which are not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    parts = sorted(set(_json(folder / INDEX).get("weight_map", {}).values()))
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing or not parts:
        raise RecipeError(f"{folder / INDEX} names {missing[0] if missing else 'no file'}, ...; fetch them again")
    return [folder / part for part in parts]


def _check_weights(folder: Path) -> None:
    if weight_files(folder):
        return
    if any((folder / name).is_file() for name in PICKLES):
        raise RecipeError(
            f"{folder} holds its weights as a pickle ({PICKLES[0]}), which could run code and is never loaded; "
            f"convert it once: AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained('{folder}')"
        )
    raise RecipeError(
        f"{folder} holds no {WEIGHTS}; to train that architecture from new weights use "
        f"model.config={folder / 'config.json'}"
    )


def _token_ids(tokenizer: Config) -> dict[str, int]:
    """All tokens of a tokenizer.json with their ids; Unigram lists them as [token, score] in order."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return {**vocabulary, **{added["content"]: added["id"] for added in tokenizer.get("added_tokens", [])}}


def cached(name: str) -> Path | None:
    """The folder of a hub model in the local cache, where it is whole there. Asks nobody."""
    try:
        folder = _fetched(name, local=True)
    except (OSError, ValueError):  # what huggingface_hub raises for caches, networks and names
        return None
    return folder if any((folder / weights).is_file() for weights in (WEIGHTS, INDEX)) else None


def _snapshot(name: str) -> Path:
    """The folder of a hub model: from the local cache where it is whole there, else from the hub."""
    if folder := cached(name):
        return folder
    try:
        return _fetched(name, local=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
    raise RecipeError(
        f"model.name asks for {name}, which is not in the local hub cache and did not come from the hub ({reason}); "
        "check the name and the network, or set model.path to a folder that holds it"
    )


def _fetched(name: str, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=FROM_HUB, local_files_only=local))
