"""What of a model decides its memory and time: from a recipe, a Hugging Face config.json, or what was published."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samestep.errors import RecipeError
from samestep.model.folder import resolve
from samestep.recipe.schema import Model

# Those that multiply two projections in the middle of an MLP (Shazeer, arXiv 2002.05202), and those that do not.
PLAIN_MLP = [
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "gpt_bigcode",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "phi",
    "codegen",
    "starcoder2",
    "nemotron",
    "persimmon",
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "camembert",
    "xlm-roberta",
    "deberta-v2",
]
ENCODERS = ["bert", "roberta", "distilbert", "electra", "camembert", "xlm-roberta", "deberta-v2"]
LEARNED_POSITIONS = ("gpt2", "gpt_neo", "gpt_bigcode", "opt", "mpt", *ENCODERS)
MASKED = 0.15  # of an encoder's positions that are predicted (Devlin et al., arXiv 1810.04805, section 3.1)

# The names that configurations give to one thing.
KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "key_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_size": ("head_dim",),
    "inner": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim"),
    "vocabulary": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len"),
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Facts:
    """The shape of a transformer. positions: learned ones. predicted: share of the positions whose loss is taken."""

    layers: int
    width: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    vocabulary: int
    tied: bool = True
    gated: bool = True
    positions: int = 0
    causal: bool = True
    predicted: float = 1.0
    dropout: bool = False

    @property
    def queries(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        return self.key_heads * self.head_size

    @property
    def layer(self) -> int:
        """Parameters of one layer, without biases, which are less than a thousandth."""
        attention = 2 * self.width * (self.queries + self.keys)
        return attention + (3 if self.gated else 2) * self.width * self.inner + 2 * self.width

    @property
    def embedding(self) -> int:
        """Parameters outside the layers."""
        return self.width * (self.vocabulary * (1 if self.tied else 2) + self.positions + 1)

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.embedding


def of_model(model: Model, base: Path) -> Facts:
    """Of a recipe's section `model`; base: the recipe's folder. Raises RecipeError as `of_config` does."""
    if not model.family_used:
        folder = resolve(model, base)
        return of_file(base / str(model.config) if folder is None else folder / "config.json")
    heads = model.heads or max(1, model.width // 64)
    size = model.width // heads
    inner = -(-8 * model.width // 96) * 32
    shape = (model.layers, model.width, heads, heads, size, inner, model.vocabulary)
    return Facts(*shape, tied=model.tied, dropout=model.dropout > 0)


def of_file(file: Path) -> Facts:
    """Of a config.json. Raises RecipeError for a file that is not there, is no JSON, or lacks the shape."""
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror}; give a config.json or its folder") from None
    except ValueError as error:
        raise RecipeError(f"{file} is no JSON: {error}; give the config.json of a Hugging Face model") from None
    if not isinstance(config, dict):
        raise RecipeError(f"{file} is no JSON object; give the config.json of a Hugging Face model")
    return of_config(config, str(file))


def of_config(config: Mapping[str, Any], name: str) -> Facts:
    """Of the fields of a Hugging Face configuration; name: for errors.

    Raises RecipeError for a mixture of experts, which has no one width, and for a missing number.
    """
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    kind = config.get("model_type", "")
    if any((config.get(key) or 0) > 1 for key in EXPERTS):
        raise RecipeError(f"{name} is a mixture of experts, which plan cannot do yet; give a dense model")
    found: dict[str, Any] = {
        key: next((config[n] for n in names if config.get(n) is not None), None) for key, names in KEYS.items()
    }
    missing = [key for key in ("layers", "width", "heads", "vocabulary") if not isinstance(found[key], int)]
    if missing:
        raise RecipeError(f"{name} does not say {KEYS[missing[0]][0]}, which plan needs; add it")
    learned = kind in LEARNED_POSITIONS
    facts = Facts(
        layers=found["layers"],
        width=found["width"],
        heads=found["heads"],
        key_heads=_key_heads(config, found),
        head_size=found["head_size"] or found["width"] // found["heads"],
        inner=found["inner"] or int(config.get("expansion_ratio", 4)) * found["width"],
        vocabulary=found["vocabulary"],
        tied=config.get("tie_word_embeddings", kind not in ("llama", "mistral", "gpt_neox", "phi", "qwen2")),
        gated=kind not in PLAIN_MLP,
        positions=(found["positions"] or 0) if learned else 0,
    )
    return replace(facts, causal=False, predicted=MASKED, dropout=True) if kind in ENCODERS else facts


def _key_heads(config: Mapping[str, Any], found: Mapping[str, Any]) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    count: int = found["key_heads"] or found["heads"]
    return count
