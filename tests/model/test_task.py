import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.data.feed import MicroBatch
from samestep.errors import RecipeError
from samestep.model.task import Task, build, refuse_batch_statistics
from samestep.recipe.schema import Recipe

Build = Callable[..., Task]
SMALL = {"layers": 1, "width": 32, "dtype": "float32"}


@pytest.fixture
def make(tokenizer_file: Path, vocabulary: int, tmp_path: Path) -> Build:
    def make(model: dict[str, Any], seed: int = 1, **sections: Any) -> Task:
        recipe = Recipe.model_validate({"steps": 1, "data": {"context": 16}, "model": model, **sections})
        return build(recipe, seed=seed, vocabulary=vocabulary, eos=0, tokenizer_file=tokenizer_file, base=tmp_path)

    return make


@pytest.fixture
def batch(vocabulary: int) -> MicroBatch:
    tokens = torch.randint(vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    return MicroBatch(tokens, targets)


def gradients(task: Task, batch: MicroBatch) -> list[Tensor]:
    return list(torch.autograd.grad(task.loss(batch), list(task.module.parameters())))


def test_the_loss_is_the_float32_sum_over_target_tokens(make: Build, batch: MicroBatch) -> None:
    task = make(SMALL)
    logits = task.module(batch.tokens)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    assert task.loss(batch).dtype == torch.float32
    torch.testing.assert_close(task.loss(batch), expected)


def test_weights_follow_from_the_seed_and_not_from_what_was_drawn_before(make: Build) -> None:
    first = list(make(SMALL, seed=-5).module.parameters())
    torch.rand(7)
    same, other = list(make(SMALL, seed=-5).module.parameters()), list(make(SMALL, seed=6).module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_recipe_shapes_the_built_in_model(make: Build, vocabulary: int) -> None:
    shape = make({"layers": 3, "width": 64, "heads": 4, "tied": False, "dropout": 0.1}).module.shape
    assert (shape.layers, shape.width, shape.heads, shape.tied, shape.dropout) == (3, 64, 4, False, 0.1)
    assert (shape.vocabulary, shape.context) == (vocabulary, 16)
    assert make({"width": 256}).module.shape.heads == 4


def test_bfloat16_is_for_products_only(make: Build, batch: MicroBatch) -> None:
    exact, task = make(SMALL), make({**SMALL, "dtype": "bfloat16"})
    assert {p.dtype for p in task.module.parameters()} == {torch.float32}
    assert task.loss(batch).dtype == torch.float32
    assert 0 < (task.loss(batch) - exact.loss(batch)).abs() < 1e-3 * exact.loss(batch)


def test_checkpointing_is_passed_on_and_changes_no_bit(make: Build, tmp_path: Path, batch: MicroBatch) -> None:
    for name in ("built", "left"):
        make(SMALL).save(tmp_path / name)
    left_to_transformers(tmp_path / "left")
    for model in (SMALL, *({"path": name, "dtype": "float32"} for name in ("built", "left"))):
        kept, again = (make(model, compute={"checkpointing": wish}) for wish in ("none", "full"))
        assert [layers_run_in_a_step(task, batch) for task in (kept, again)] == [1, 2]
        pairs = zip(gradients(kept, batch), gradients(again, batch), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def left_to_transformers(folder: Path) -> None:
    """The same model under a config.json by which it is no plain Llama: another name of silu."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "swish"}))


def layers_run_in_a_step(task: Task, batch: MicroBatch) -> int:
    calls: list[nn.Module] = []
    task.module.model.layers[0].mlp.register_forward_pre_hook(lambda layer, _: calls.append(layer))
    gradients(task, batch)
    return len(calls)


@pytest.mark.parametrize("kind", ["GPT", "LlamaForCausalLM"])
def test_a_saved_task_goes_on_from_its_folder(kind: str, make: Build, tmp_path: Path, batch: MicroBatch) -> None:
    task = make(SMALL)
    task.save(tmp_path / "deep" / "built")
    if kind != "GPT":
        left_to_transformers(tmp_path / "deep" / "built")
    other = make({"path": "deep/built", "dtype": "float32"})
    assert type(other.module).__name__ == kind
    torch.testing.assert_close(other.loss(batch), task.loss(batch), rtol=1e-6, atol=0)
    (tmp_path / "deep" / "built" / "chat_template.jinja").write_text("{{ messages }}")
    other.save(tmp_path / "again")
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in (tmp_path / "again").iterdir()} == names | {"chat_template.jinja"}


def test_both_kinds_of_model_write_the_same_text(make: Build, tmp_path: Path) -> None:
    task = make({**SMALL, "dropout": 0.5})
    for parameter in task.module.parameters():
        parameter.data *= 8  # new weights find all tokens equally likely, whatever is done to them
    task.save(tmp_path / "built")
    left_to_transformers(tmp_path / "built")
    other = make({"path": "built", "dtype": "float32"})
    assert type(other.module).__name__ == "LlamaForCausalLM"
    texts = [t.generate([5, 6], 20, 1.0, torch.Generator().manual_seed(0)) for t in (task, task, other)]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) > 16, "longer than the context"
    assert task.module.training, "the mode is left as it was"


def test_a_config_gives_its_architecture_new_weights(make: Build, tmp_path: Path, batch: MicroBatch) -> None:
    make(SMALL).save(tmp_path / "built")
    wish = {"config": "built/config.json", "dtype": "float32"}
    first, same, other = (make(wish, seed=seed) for seed in (1, 1, 2))
    assert type(first.module).__name__ == "LlamaForCausalLM"
    assert torch.equal(first.loss(batch), same.loss(batch))
    assert not torch.equal(first.loss(batch), other.loss(batch))


def test_a_tokenizer_named_by_the_recipe_brings_its_companions(
    make: Build, tmp_path: Path, tokenizer_file: Path
) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    (tmp_path / "words" / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "mine": 1}')
    for given in ("words", "words/tokenizer.json"):
        target = tmp_path / f"from {Path(given).name}"
        make(SMALL, data={"context": 16, "tokenizer": given}).save(target)
        assert '"mine": 1' in (target / "tokenizer_config.json").read_text()


def test_a_context_longer_than_the_models_is_refused(make: Build, tmp_path: Path) -> None:
    make(SMALL).save(tmp_path / "built")
    with pytest.raises(
        RecipeError, match=r"data.context is 17 but max_position_embeddings in .*built/config.json is 16"
    ):
        make({"path": "built"}, data={"context": 17})


def test_a_tokenizer_larger_than_the_embedding_is_refused(make: Build, tmp_path: Path, vocabulary: int) -> None:
    (tmp_path / "small.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": vocabulary - 1}))
    with pytest.raises(
        RecipeError, match=f"has {vocabulary} tokens but vocab_size in .*small.json is {vocabulary - 1}"
    ):
        make({"config": "small.json"})


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_of_adapters_only_they_are_saved_with_the_tokenizer(
    lora: dict[str, Any] | None, make: Build, tmp_path: Path
) -> None:
    make(SMALL).save(tmp_path / "built")
    task = make({"path": "built", "lora": lora})
    task.save(tmp_path / "again")
    weights = (
        {"adapter_config.json", "adapter_model.safetensors"}
        if lora
        else {"config.json", "generation_config.json", "model.safetensors"}
    )
    found = {file.name for file in (tmp_path / "again").iterdir()}
    assert found == weights | {"tokenizer.json", "tokenizer_config.json"}
    assert task.origin == tmp_path / "built"


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True)])
def test_batch_statistics_are_refused_by_the_layers_name(layer: nn.Module) -> None:
    with pytest.raises(RecipeError, match=r"1\.0 is a \w+Norm1d with running statistics.*; use LayerNorm or GroupNorm"):
        refuse_batch_statistics(nn.Sequential(nn.LayerNorm(4), nn.Sequential(layer)))


def test_norms_without_running_statistics_pass() -> None:
    refuse_batch_statistics(nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile against torch itself
def test_compiled_it_has_the_same_loss_and_gradients(make: Build, batch: MicroBatch) -> None:
    from torch._dynamo.utils import counters

    plain, compiled = make(SMALL), make(SMALL, compute={"compile": True})
    before = counters["stats"]["unique_graphs"]
    torch.testing.assert_close(compiled.loss(batch), plain.loss(batch), rtol=1e-4, atol=0)
    for a, b in zip(gradients(compiled, batch), gradients(plain, batch), strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()
    assert counters["stats"]["unique_graphs"] > before
