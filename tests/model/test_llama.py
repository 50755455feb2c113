"""The built-in model over folders that transformers wrote: the same numbers, without transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

from samestep.errors import RecipeError
from samestep.model import llama
from samestep.model.gpt import GPT, Shape, config
from samestep.model.llama import Scored

CONTEXT = 24
PLAIN = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "grouped queries": {"num_key_value_heads": 2},
    "wide heads": {"num_key_value_heads": 1, "head_dim": 24},
    "other constants": {"rms_norm_eps": 1e-2, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "padding": {"pad_token_id": 3, "tie_word_embeddings": True},
}


def write(folder: Path, dtype: torch.dtype = torch.float32, *, scores: bool = False, **settings: Any) -> Path:
    torch.manual_seed(0)
    kind = transformers.LlamaForSequenceClassification if scores else transformers.LlamaForCausalLM
    module = kind(transformers.LlamaConfig(**PLAIN, **settings, **({"num_labels": 1} if scores else {})))
    module.to(dtype).save_pretrained(folder, max_shard_size="30KB" if "sharded" in folder.name else "1GB")
    return folder


def shape(folder: Path) -> Shape:
    found = llama.shape_of(json.loads((folder / "config.json").read_text()), CONTEXT)
    assert found is not None
    return found


def load(folder: Path, **settings: Any) -> Any:
    return llama.load(folder, shape(folder), **settings)


def theirs(folder: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def batch() -> tuple[Tensor, Tensor]:
    """Tokens and the positions of three sequences and padding in each row."""
    tokens = torch.randint(64, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    positions = [torch.cat([*map(torch.arange, sizes), torch.zeros(2).long()]) for sizes in ((7, 9, 6), (1, 3, 18))]
    return tokens, torch.stack(positions)


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def mapped(tensor: Tensor, folder: Path) -> bool:
    """Whether the tensor's memory is that of a file in `folder`."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(address, 16) for address in line.split()[0].split("-"))
        if str(folder) in line and start <= tensor.data_ptr() < stop:
            return True
    return False


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **KINDS[kind])
    module, wanted, (tokens, positions) = load(folder), theirs(folder), batch()
    for where in (None, positions):
        expected = wanted.model(input_ids=tokens, position_ids=where, use_cache=False).last_hidden_state
        assert difference(module.model(tokens, where), expected) < 1e-5
        expected = wanted(input_ids=tokens, position_ids=where, use_cache=False).logits
        assert difference(module(tokens, positions=where), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **KINDS[kind])
    module, wanted, (tokens, positions) = load(folder), theirs(folder), batch()
    targets = tokens.roll(-1, 1)
    module(tokens, targets, positions).backward()
    logits = wanted(input_ids=tokens, position_ids=positions, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    gradients = {name: parameter.grad for name, parameter in wanted.named_parameters()}
    assert gradients.keys() == dict(module.named_parameters()).keys()
    for name, parameter in module.named_parameters():
        assert difference(parameter.grad, gradients[name]) < 1e-5, name


@torch.no_grad()
@pytest.mark.parametrize("name", ["sharded", "whole"])
def test_weights_stored_in_bfloat16_and_in_several_files_are_read_in_float32(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / name, torch.bfloat16, num_key_value_heads=2)
    assert (folder / "model.safetensors.index.json").exists() == (name == "sharded")
    module, (tokens, _) = load(folder), batch()
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert difference(module(tokens), theirs(folder)(input_ids=tokens).logits) < 1e-5


def test_weights_are_mapped_from_the_files_until_they_are_written(tmp_path: Path) -> None:
    folder = write(tmp_path / "sharded")
    before = {file: file.read_bytes() for file in folder.glob("*.safetensors")}
    parameters = dict(load(folder).named_parameters())
    assert len(before) > 1
    assert all(mapped(parameter, folder) for parameter in parameters.values())
    with torch.no_grad():
        parameters["model.norm.weight"].fill_(7)
    assert before == {file: file.read_bytes() for file in before}, "the file is not written through"
    assert (parameters["model.norm.weight"] == 7).all()


def test_frozen_matrices_stay_as_they_are_stored_and_mapped(tmp_path: Path) -> None:
    folder = write(tmp_path, torch.bfloat16)
    for name, parameter in load(folder, frozen=torch.bfloat16).named_parameters():
        assert parameter.dtype == (torch.bfloat16 if parameter.dim() > 1 else torch.float32), name
        assert mapped(parameter, folder) == (parameter.dim() > 1), name
    assert not any(mapped(parameter, folder) for parameter in load(folder).parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"attention_dropout": 0.1},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500_000.0}},
        {"num_hidden_layers": None},
        {"pad_token_id": 64},
    ],
)
def test_what_is_no_plain_llama_is_left_to_transformers(change: dict[str, Any], tmp_path: Path) -> None:
    described = json.loads((write(tmp_path) / "config.json").read_text())
    assert llama.shape_of(described, CONTEXT) is not None
    changed = {key: value for key, value in (described | change).items() if value is not None}
    assert llama.shape_of(changed, CONTEXT) is None


def test_an_old_config_without_new_keys_is_a_plain_llama() -> None:
    old = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
           "num_attention_heads": 4, "vocab_size": 70, "rope_theta": 5e5, "rope_scaling": None}  # fmt: skip
    found = llama.shape_of(old, 99)
    wanted = Shape(3, 64, 4, vocabulary=70, context=99, tied=False, inner_width=96, rotary_base=5e5)
    assert found == wanted
    assert (found.head_size, found.key_heads) == (16, 4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_config_of_a_shape_describes_that_shape(tied: bool) -> None:
    wide = Shape(2, 32, 4, 64, CONTEXT, tied, groups=2, head_width=24, inner_width=48, norm_epsilon=1e-5, padding=3)
    assert llama.shape_of(config(wide, eos=0), CONTEXT) == wide


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in stored.items() if name != "model.layers.1.mlp.up_proj.weight"}
    safetensors.torch.save_file(kept, folder / "model.safetensors")
    with pytest.raises(RecipeError, match=r"lacks the tensor model.layers.1.mlp.up_proj.weight; name a folder with"):
        load(folder)


def test_a_misshapen_tensor_is_refused_with_both_shapes(tmp_path: Path) -> None:
    folder = write(tmp_path)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"vocab_size": 65}))
    with pytest.raises(RecipeError, match=r"embed_tokens.weight in the shape \[64, 32\] but .* asks for \[65, 32\];"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_transformers_loads_equal_with_the_config_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write(tmp_path / "base", dtype, num_key_value_heads=2, pad_token_id=3)
    module = load(folder)
    with torch.no_grad():
        module.lm_head.weight += 1
    (tmp_path / "saved").mkdir()
    llama.save(module, tmp_path / "saved", folder)
    again, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(found.values())
    weights = dict(again.named_parameters())
    assert all(torch.equal(weights[name], parameter) for name, parameter in module.named_parameters())
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "saved"))
    assert after == before | {"dtype": "float32"}
    copies = [(f / "generation_config.json").read_bytes() for f in (folder, tmp_path / "saved")]
    assert copies[0] == copies[1]


@torch.no_grad()
def test_a_reward_model_is_that_of_transformers(tmp_path: Path) -> None:
    folder, (tokens, _) = write(tmp_path / "base", scores=True, pad_token_id=3), batch()
    module = load(folder, scores=True)
    assert isinstance(module, Scored)
    wanted = transformers.LlamaForSequenceClassification.from_pretrained(folder)
    tokens[:, -1] = 5  # no padding
    scores = module.score(module.model(tokens))[:, -1]
    torch.testing.assert_close(scores, wanted(input_ids=tokens).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_score_follows_from_the_seed_and_is_saved_for_transformers(tied: bool, tmp_path: Path) -> None:
    folder, (tokens, _) = write(tmp_path / "base", tie_word_embeddings=tied), batch()
    torch.manual_seed(5)
    module = load(folder, scores=True)
    torch.manual_seed(5)
    assert torch.equal(load(folder, scores=True).score.weight, module.score.weight)
    (tmp_path / "saved").mkdir()
    llama.save(module, tmp_path / "saved", folder)
    kind = transformers.AutoModelForSequenceClassification
    again, found = kind.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(found.values())
    assert again.config.num_labels == 1
    assert torch.equal(again.score.weight, module.score.weight)
    wanted = again(input_ids=tokens[:1]).logits
    torch.testing.assert_close(module.score(module.model(tokens[:1]))[:, -1], wanted, rtol=1e-5, atol=1e-5)


def test_checkpointing_and_training_mode_are_set(tmp_path: Path) -> None:
    folder = write(tmp_path)
    module = load(folder, checkpointing=True)
    assert isinstance(module, GPT)
    assert module.training and module.model.checkpointing and not load(folder).model.checkpointing
