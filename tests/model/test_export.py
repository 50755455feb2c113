import json
import math
import re
from pathlib import Path

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import RecipeError
from samestep.model import export

# peft 0.21 asks transformers 5.23 by an old name when it makes adapters
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def llama(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, **settings: object) -> Path:
    """Adapters whose B is not zero, as after training."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], **settings)
    model = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("model") / "base")


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
    ],
)
def test_merged_weights_are_base_plus_scaled_b_times_a(base, tmp_path, settings, scaling):
    folder = adapter(base, tmp_path / "adapter", **settings)
    live = export.load(folder, reward=False, base=base)
    stored = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    merged = export.tensors(export.merge(live))
    for name, tensor in merged.items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{place}.base_layer.weight" in stored:
            a, b = (stored[f"{place}.lora_{x}.default.weight"] for x in "AB")
            assert torch.equal(tensor, stored[f"{place}.base_layer.weight"] + scaling * (b @ a))
        else:
            assert torch.equal(tensor, stored[f"{place}.weight"])


def test_adapters_that_are_not_finite_are_not_merged(base, tmp_path):
    live = export.load(adapter(base, tmp_path / "adapter", r=2), reward=False, base=base)
    with torch.no_grad():
        next(tensor for name, tensor in live.named_parameters() if "lora_B" in name).fill_(math.nan)
    with pytest.raises(RecipeError, match=r"cannot be merged .*export without --merge"):
        export.merge(live)


def test_a_model_is_loaded_for_evaluation_in_float32(base):
    module = export.load(base, reward=False)
    assert not module.training and {t.dtype for t in module.state_dict().values()} == {torch.float32}
    assert export.load(base, reward=True).score.out_features == 1


def test_a_folder_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(RecipeError, match=rf"{tmp_path} cannot be loaded"):
        export.load(tmp_path, reward=False)


def test_an_adapter_names_its_base(base, tmp_path):
    folder = adapter(base, tmp_path / "adapter", r=2)
    assert export.is_adapter(folder) and not export.is_adapter(base)
    assert export.base_folder(folder) == base


def test_a_base_that_is_gone_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/nowhere"}))
    with pytest.raises(RecipeError, match="names /nowhere as its base model, which is no folder here"):
        export.base_folder(tmp_path)


SOME = {"a": torch.tensor([1.0, 0.0, math.nan]), "b": torch.tensor(2, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"a": torch.tensor([1.0, -0.0, math.nan])}, r"^a \("),
        ({"a": torch.tensor([1.0, 0.5, math.nan])}, r"^a \(2 of 3 values differ\)"),  # NaN differs from itself here
        ({"b": torch.tensor(2, dtype=torch.int32)}, r"^b \(torch.int64 \[\], but torch.int32 \[\]\)"),
        ({"b": torch.tensor([2])}, r"^b \(torch.int64 \[\], but torch.int64 \[1\]\)"),
        ({"c": torch.tensor(0)}, r"^c \(it is in one of them only\)"),
    ],
)
def test_the_first_difference_is_of_bits(change, says):
    found = export.first_difference(SOME, SOME | change)
    assert found is None if says is None else re.search(says, str(found))


def test_the_head_behind_a_trained_one_does_not_count():
    module = torch.nn.ModuleDict({"original_module": torch.nn.Linear(1, 1), "kept": torch.nn.Linear(1, 1)})
    assert set(export.tensors(torch.nn.ModuleDict({"score": module}))) == {"score.kept.weight", "score.kept.bias"}


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9), st.floats(0, 1))
def test_a_logit_moved_by_a_share_of_the_largest_is_that_far_off(values, share):
    live = torch.tensor([*values, 1e6], dtype=torch.float64)
    moved = live.clone()
    moved[0] += share * 1e6
    assert export.relative_difference(live, moved) == pytest.approx(share, abs=1e-9)
    assert export.relative_difference(live, live) == 0


def test_logits_of_another_shape_or_not_finite_are_infinitely_far():
    one = torch.ones(2)
    assert export.relative_difference(one, torch.ones(3)) == math.inf
    assert export.relative_difference(one, torch.tensor([1.0, math.nan])) == math.inf
    assert export.relative_difference(torch.zeros(2), one) == math.inf
