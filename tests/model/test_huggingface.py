from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
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
    return list(torch.autograd.grad(huggingface.whole_loss(module, *batch(), None), list(module.parameters())))


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
        assert not torch.equal(
            huggingface.whole_loss(module, *batch(), None), huggingface.whole_loss(module, *batch(), None)
        )


def test_the_loss_pairs_each_position_with_its_own_target(config_file: Path) -> None:
    module, (tokens, targets) = new(config_file).eval(), batch()
    targets[0, 3:] = -100
    losses = huggingface.token_losses(module, tokens, targets, None).view(2, 16)
    scores = module(input_ids=tokens).logits.log_softmax(-1)
    expected = -scores.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2) * (targets >= 0)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(huggingface.whole_loss(module, tokens, targets, None), expected.sum())


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


def wide(architecture: str, **settings: object) -> Any:
    """A tiny causal language model whose weights are so large that each token matters to those after it."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(architecture, **SIZES[architecture], **settings)
    module = transformers.AutoModelForCausalLM.from_config(config).train()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return module


COMMON: dict[str, object] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
SLIDING = {**GROUPED, "sliding_window": 4}
PLAIN_GPT2 = {**GPT2, "vocab_size": 64, "n_positions": 32, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
SIZES: dict[str, dict[str, object]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "mistral": SLIDING,
    "gemma2": {**SLIDING, "head_dim": 16},
    "gemma3_text": {**SLIDING, "head_dim": 16},
    "gpt2": {key: value for key, value in PLAIN_GPT2.items() if key not in ("model_type", "architectures")},
    "phi": COMMON,
    "olmo2": GROUPED,
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
    "mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32},
    "rwkv": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0},
}
MIXING = ["opt", "bloom", "mpt", "rwkv"]


def apart(module: Any) -> float:
    """How far the hidden states of sequences in packed rows are from those of each alone, as a share of their norm."""
    lengths = ((7, 9, 1, 4), (3, 8, 8))
    positions = torch.stack(
        [torch.cat([*map(torch.arange, row), torch.zeros(24 - sum(row)).long()]) for row in lengths]
    )
    tokens = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(0))
    packed = huggingface.hidden(module, tokens, positions)
    found = []
    for row, sizes in enumerate(lengths):
        parts = [*sizes, 24 - sum(sizes)]
        for here, one in list(zip(packed[row].split(parts), tokens[row].split(parts), strict=True))[:-1]:
            alone = huggingface.hidden(module, one.unsqueeze(0), None)[0]
            found.append(float((here - alone).norm() / alone.norm()))
    return max(found)


@torch.no_grad()
@pytest.mark.parametrize("architecture", [name for name in SIZES if name not in MIXING])
def test_sequences_of_a_packed_row_are_as_if_each_were_alone(architecture: str) -> None:
    module = wide(architecture)
    assert apart(module) < 1e-5
    assert huggingface.keeps_apart(module)
    assert module.training, "the mode is left as it was"


@torch.no_grad()
@pytest.mark.parametrize("architecture", MIXING)
def test_architectures_that_mix_the_sequences_of_a_row_are_found_out(architecture: str) -> None:
    assert apart(wide(architecture)) > 0.1
    assert not huggingface.keeps_apart(wide(architecture))
    config = transformers.AutoConfig.for_model(architecture, **SIZES[architecture])
    assert not huggingface.keeps_apart(transformers.AutoModelForCausalLM.from_config(config)), "small new weights"


@pytest.mark.parametrize(
    ("architecture", "settings", "plain"),
    [
        ("qwen2", {}, True),
        ("gemma2", {}, False),  # logits are capped
        ("gemma2", {"final_logit_softcapping": None}, True),
        ("phi", {}, False),  # the head has a bias, not 0 here
    ],
)
def test_a_head_that_is_more_than_a_product_is_found_out(
    architecture: str, settings: dict[str, object], plain: bool
) -> None:
    module = wide(architecture, **settings)
    if architecture == "phi":
        torch.nn.init.ones_(module.lm_head.bias)
    assert huggingface.plain_head(module) is plain
    assert module.training, "the mode is left as it was"


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gemma2"])
def test_a_decoder_in_steps_gives_the_logits_of_the_whole(architecture: str) -> None:
    module = wide(architecture).eval()
    tokens = torch.randint(64, (1, 12), generator=torch.Generator().manual_seed(0))
    decode = huggingface.decoder(module)
    steps = torch.cat([decode(part) for part in tokens.split([5, 1, 3, 1, 2], 1)], 1)
    torch.testing.assert_close(steps, module(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_model_that_scores_gets_one_new_output_and_keeps_a_stored_one(config_file: Path) -> None:
    folder = saved(config_file)
    torch.manual_seed(4)
    module = huggingface.pretrained(folder, scores=True)
    assert isinstance(module, transformers.GPT2ForSequenceClassification)
    assert huggingface.score_of(module, folder).weight.shape == (1, 32)
    huggingface.save(module, folder / "scored")
    again = huggingface.pretrained(folder / "scored", scores=True)
    assert torch.equal(huggingface.score_of(again, folder).weight, module.score.weight)


def test_a_score_of_another_name_is_refused(config_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"GPT2LMHeadModel of .* has no linear layer `score`; choose another"):
        huggingface.score_of(new(config_file), config_file)
