from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from samestep.errors import RecipeError
from samestep.model import llama, lora
from samestep.model.gpt import Shape
from samestep.recipe.schema import Lora

PLAIN = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}  # fmt: skip
KINDS = {"lora": Lora(rank=4), "dora": Lora(rank=4, dora=True), "rslora": Lora(rank=4, rslora=True)}
LEAVES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with an output embedding of its own."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**PLAIN)).save_pretrained(folder)
    return folder


def shape() -> Shape:
    return Shape(layers=2, width=32, heads=4, vocabulary=64, context=32, tied=False, inner_width=48)


def built_in(folder: Path, *, scores: bool = False, frozen: torch.dtype | None = None) -> Any:
    return llama.load(folder, shape(), scores=scores, frozen=frozen)


def through_transformers(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def logits(module: Any) -> Tensor:
    found: Tensor = module(tokens())
    return found if isinstance(found, Tensor) else found.logits


def tokens() -> Tensor:
    return torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))


def adapt(module: Any, wish: Lora, seed: int = 1, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return lora.adapt(module, wish, head=getattr(module, "lm_head", None), **settings)


def move(module: nn.Module, seed: int = 2) -> None:
    """Adapters as after some training: the product that they add is no longer 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def adapted_layers(module: nn.Module) -> set[str]:
    return {name.partition(".lora_")[0] for name in trained(module)}


@pytest.mark.parametrize("load", [built_in, through_transformers])
@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_require_gradients_and_nothing_changes_at_the_start(
    kind: str, load: Callable[[Path], Any], base: Path
) -> None:
    module = load(base)
    before = logits(module)
    adapt(module, KINDS[kind])
    torch.testing.assert_close(logits(module), before, rtol=0, atol=0 if kind != "dora" else 1e-5)
    assert all(".lora_" in name for name in trained(module))
    assert any("magnitude" in name for name in trained(module)) == (kind == "dora")
    logits(module).sum().backward()
    assert all((p.grad is None) == (name not in trained(module)) for name, p in module.named_parameters())


def test_by_default_all_linear_layers_but_the_output_embedding_are_adapted(base: Path) -> None:
    module = built_in(base)
    adapt(module, Lora(rank=2))
    assert len(adapted_layers(module)) == 2 * len(LEAVES)
    assert {name.rpartition(".")[2] for name in adapted_layers(module)} == LEAVES


def test_targets_are_ends_of_names(base: Path) -> None:
    module = built_in(base)
    adapt(module, Lora(rank=2, targets=["q_proj", "1.mlp.up_proj"]))
    attention = {f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)}
    assert adapted_layers(module) == attention | {"model.layers.1.mlp.up_proj"}


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("q_porj", r"asks for q_porj, which no linear layer of the model has.*q_proj"),
        ("attention", r"asks for attention, .* its linear layers are down_proj, gate_proj, k_proj, .*v_proj"),
        ("embed_tokens", r"asks for embed_tokens, which no linear layer"),
        ("proj", r"asks for proj, which no linear layer"),
    ],
)
def test_a_target_that_no_layer_has_is_refused_with_what_there_is(target: str, says: str, base: Path) -> None:
    with pytest.raises(RecipeError, match=says) as error:
        adapt(built_in(base), Lora(targets=["v_proj", target]))
    assert "\n" not in str(error.value)


def test_gpt2s_own_kind_of_linear_layer_is_adapted_and_loads_through_peft(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    module = through_transformers(tmp_path / "base").eval()
    adapted = adapt(module, Lora(rank=2))
    assert {name.rpartition(".")[2] for name in adapted_layers(module)} == {"c_attn", "c_proj", "c_fc"}
    move(module)
    assert_loads_equal(module.eval(), adapted, tmp_path / "base", tmp_path / "adapter")


def test_new_adapters_follow_from_the_seed(base: Path) -> None:
    first, same, other = (built_in(base) for _ in range(3))
    for module, seed in ((first, 1), (same, 1), (other, 2)):
        adapt(module, Lora(rank=2), seed)
    pairs = [zip(trained(first).values(), trained(m).values(), strict=True) for m in (same, other)]
    assert [all(torch.equal(a, b) for a, b in pair) for pair in pairs] == [True, False]


def test_dropout_is_drawn_from_torchs_generator_in_training_only(base: Path) -> None:
    module = built_in(base)
    adapt(module, Lora(rank=2, dropout=0.5))
    move(module)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return logits(module)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    module.eval()
    assert torch.equal(drawn(1), drawn(2))


def assert_loads_equal(module: nn.Module, adapted: Any, base: Path, folder: Path) -> None:
    lora.save(adapted, folder, base, "CAUSAL_LM")
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with lora.quiet():
        again = peft.PeftModel.from_pretrained(plain, folder)
    torch.testing.assert_close(again(tokens()).logits, logits(module), rtol=1e-5, atol=1e-5)
    difference = (logits(module) - transformers.AutoModelForCausalLM.from_pretrained(base)(tokens()).logits).abs()
    assert difference.max() > 0.01, "the adapters do something"


@torch.no_grad()
@pytest.mark.parametrize("load", [built_in, through_transformers])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_loads_through_peft_on_top_of_transformers(
    kind: str, load: Callable[[Path], Any], base: Path, tmp_path: Path
) -> None:
    module = load(base)
    adapted = adapt(module, KINDS[kind])
    move(module)
    assert_loads_equal(module, adapted, base, tmp_path)
    assert peft.PeftConfig.from_pretrained(tmp_path).base_model_name_or_path == str(base)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_without_its_adapters_a_model_is_its_base(kind: str, base: Path) -> None:
    module = built_in(base)
    before = logits(module)
    adapted = adapt(module, KINDS[kind])
    move(module)
    after = logits(module)
    with adapted.disable_adapter():
        assert torch.equal(logits(module), before)
    assert torch.equal(logits(module), after) and not torch.equal(after, before)
    assert trained(module), "they still require gradients afterwards"


@torch.no_grad()
def test_a_rewards_score_is_trained_and_saved_with_the_adapters(base: Path, tmp_path: Path) -> None:
    module = built_in(base, scores=True)
    adapted = lora.adapt(module, Lora(rank=2), head=module.score, score="score")
    move(module)
    whole = {name for name in trained(module) if ".lora_" not in name}
    assert whole == {"score.modules_to_save.default.weight"}
    lora.save(adapted, tmp_path, base, "SEQ_CLS")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    plain.config.pad_token_id = 0
    with lora.quiet():
        again = peft.PeftModel.from_pretrained(plain, tmp_path)
    shown = tokens().clamp(min=1)
    wanted = module.score(module.model(shown))[:, -1]
    torch.testing.assert_close(again(input_ids=shown).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_beside_bfloat16_weights_are_float32(kind: str, base: Path, tmp_path: Path) -> None:
    stored = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    stored.save_pretrained(tmp_path)
    module = built_in(tmp_path, frozen=torch.bfloat16)
    adapt(module, KINDS[kind])
    assert {p.dtype for p in trained(module).values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        found = logits(module)
        found.float().sum().backward()
    wanted = logits(built_in(tmp_path))
    assert (found.float() - wanted).norm() < 0.03 * wanted.norm()
    assert all(p.grad.dtype == torch.float32 for p in trained(module).values())
    assert module.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
