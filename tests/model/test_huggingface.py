from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from samestep.errors import RecipeError
from samestep.model import huggingface
from samestep.model.folder import write_json

GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 50,
    "n_positions": 16,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 49,
    "eos_token_id": 49,
}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A GPT-2 with its usual dropout of 0.1: another architecture than the built-in one."""
    write_json(tmp_path / "config.json", GPT2)
    return tmp_path / "config.json"


def new(config_file: Path, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return huggingface.new(config_file, eos=3)


def saved(config_file: Path) -> Path:
    huggingface.save(new(config_file), config_file.parent / "saved")
    return config_file.parent / "saved"


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(0))
    return tokens, tokens.roll(-1, 1)


def gradients(module: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(huggingface.loss(module, *batch()), list(module.parameters())))


def test_new_weights_follow_from_the_seed(config_file: Path) -> None:
    first, same, other = (list(new(config_file, seed).parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_new_models_end_documents_with_the_datas_token(config_file: Path) -> None:
    module = new(config_file)
    assert module.config.eos_token_id == module.generation_config.eos_token_id == 3


def test_what_is_saved_is_loaded_bit_for_bit_in_float32(config_file: Path) -> None:
    module, folder = new(config_file), saved(config_file)
    assert {file.name for file in folder.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    loaded = huggingface.pretrained(folder)
    pairs = zip(module.named_parameters(), loaded.named_parameters(), strict=True)
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_weights_stored_in_bfloat16_are_trained_in_float32(config_file: Path) -> None:
    folder = saved(config_file)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    halved = {name: tensor.bfloat16() for name, tensor in weights.items()}
    safetensors.torch.save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {**GPT2, "dtype": "bfloat16"})
    assert {p.dtype for p in huggingface.pretrained(folder).parameters()} == {torch.float32}


def test_parameters_that_are_views_of_one_buffer_are_saved(config_file: Path) -> None:
    module = new(config_file)
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    for parameter, piece in zip(module.parameters(), flat.split([p.numel() for p in module.parameters()]), strict=True):
        parameter.data = piece.view_as(parameter)
    huggingface.save(module, config_file.parent / "flat")
    loaded = huggingface.pretrained(config_file.parent / "flat")
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), loaded.parameters(), strict=True))


def test_the_configs_dropout_stays(config_file: Path) -> None:
    for module in (new(config_file), huggingface.pretrained(saved(config_file))):
        assert not torch.equal(huggingface.loss(module, *batch()), huggingface.loss(module, *batch()))


def test_the_loss_pairs_each_position_with_its_own_target(config_file: Path) -> None:
    module, (tokens, targets) = new(config_file).eval(), batch()
    targets[0, 3:] = -100
    loss = huggingface.loss(module, tokens, targets)
    scores = huggingface.logits(module, tokens).log_softmax(-1)
    expected = -sum(scores[row, t, targets[row, t]] for row in range(2) for t in range(16) if targets[row, t] >= 0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_checkpointing_changes_no_bit_of_any_gradient_with_dropout_on(config_file: Path) -> None:
    kept, module = gradients(new(config_file)), new(config_file)
    huggingface.checkpoint_activations(module, config_file)
    assert module.is_activation_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(module), strict=True))


def test_checkpointing_that_cannot_be_had_is_refused(config_file: Path) -> None:
    module = new(config_file)
    module.supports_gradient_checkpointing = False
    with pytest.raises(RecipeError, match=r"compute.checkpointing cannot be had .*; set it to none"):
        huggingface.checkpoint_activations(module, config_file)


def test_missing_weights_are_refused_not_drawn(config_file: Path) -> None:
    folder = saved(config_file)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights.pop("transformer.h.1.ln_2.weight")
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"lacks 1 of the tensors of GPT2LMHeadModel, such as transformer.h.1.ln_2"):
        huggingface.pretrained(folder)


def test_weights_of_another_shape_are_refused_with_both_shapes(config_file: Path) -> None:
    folder = saved(config_file)
    write_json(folder / "config.json", {**GPT2, "n_positions": 8})
    with pytest.raises(RecipeError, match=r"transformer.wpe.weight in the shape \[16, 32\] but .* asks for \[8, 32\];"):
        huggingface.pretrained(folder)


@pytest.mark.parametrize("change", [{"n_layer": "two"}, {"model_type": "nonesuch"}, {"model_type": "t5"}])
def test_weights_that_are_no_such_model_are_refused_in_one_line(config_file: Path, change: dict[str, object]) -> None:
    folder = saved(config_file)
    write_json(folder / "config.json", {**GPT2, **change})
    with pytest.raises(RecipeError, match=r"transformers cannot make a causal language model of .*saved") as error:
        huggingface.pretrained(folder)
    assert "\n" not in str(error.value)


def test_a_cut_file_of_weights_is_refused_in_one_line(config_file: Path) -> None:
    file = saved(config_file) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RecipeError, match=r"transformers cannot make a causal language model of .*saved") as error:
        huggingface.pretrained(file.parent)
    assert "\n" not in str(error.value)


def test_code_in_a_folder_is_never_run(config_file: Path) -> None:
    folder = saved(config_file)
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    remote = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    write_json(folder / "config.json", {**GPT2, "model_type": "mine", "auto_map": remote})
    for load in (huggingface.pretrained, lambda folder: huggingface.new(folder / "config.json", 0)):
        with pytest.raises(RecipeError, match=r"transformers cannot make"):
            load(folder)


def test_data_that_does_not_fit_is_refused_with_both_numbers(config_file: Path) -> None:
    module = new(config_file)
    huggingface.check_fits(module, 50, 16, config_file)
    with pytest.raises(RecipeError, match=r"has 51 tokens but vocab_size in .*config.json is 50"):
        huggingface.check_fits(module, 51, 16, config_file)
    with pytest.raises(RecipeError, match=r"data.context is 17 but max_position_embeddings in .* is 16"):
        huggingface.check_fits(module, 50, 17, config_file)
