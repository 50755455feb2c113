"""Losses of packed micro-batches against plain arithmetic on what transformers gives for each sequence alone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from samestep.data.feed import MicroBatch
from samestep.errors import RecipeError
from samestep.model.task import Task, build
from samestep.recipe.schema import Recipe

CONTEXT = 24
PLAIN = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 32, "bos_token_id": 0,
         "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.3}  # fmt: skip
ROWS = (((9, 4), (7, 2)), ((12, 3), (12, 3)), ((3, 1), (4, 2)))  # of each sequence: tokens, of these the prompt
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft"},
    "dpo": {"kind": "dpo", "beta": 0.3, "label_smoothing": 0.1},
    "length-normalised dpo": {"kind": "dpo", "beta": 2.0, "length_normalised": True},
    "ipo": {"kind": "dpo", "loss": "ipo", "beta": 0.4},
    "reward": {"kind": "reward"},
}
Make = Callable[..., Task]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model that the built-in one stands for, one that transformers computes."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(request.param, **PLAIN)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make(folder: Path) -> Make:
    def make(objective: dict[str, Any], seed: int = 1, dtype: str = "float32", **model: Any) -> Task:
        wish = {"path": str(folder), "dtype": dtype, **model}
        recipe = Recipe.model_validate(
            {"steps": 1, "data": {"context": CONTEXT}, "model": wish, "objective": objective}
        )
        return build(recipe, seed=seed, vocabulary=64, eos=0, tokenizer_file=folder / "none", base=folder)

    return make


def sequences() -> list[tuple[Tensor, int]]:
    """The tokens of each sequence, none of them padding, and how many of them are the prompt."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(1, 64, (size,), generator=generator), prompt) for row in ROWS for size, prompt in row]


def reference() -> Tensor:
    return -torch.rand(2 * len(ROWS), generator=torch.Generator().manual_seed(1)) * 9


def packed(kind: str, rows: int = len(ROWS) + 1) -> MicroBatch:
    """Two sequences a row; rows beyond those that there are are missing ones. The last token is read for a score."""
    tokens, positions = torch.zeros(rows, CONTEXT).long(), torch.zeros(rows, CONTEXT).long()
    targets, pieces = torch.full((rows, CONTEXT), -100), []
    for number, (ids, prompt) in enumerate(sequences()):
        row, second = divmod(number, 2)
        start = pieces[-1][2] if second else 0
        stop = start + len(ids) - (kind != "reward")
        tokens[row, start:stop], positions[row, start:stop] = ids[: stop - start], torch.arange(stop - start)
        targets[row, start + prompt - 1 : start + len(ids) - 1] = ids[prompt:]
        pieces.append((row, start, stop, number))
    return MicroBatch(tokens, targets, positions, torch.tensor(pieces), reference())


def missing() -> MicroBatch:
    """A micro-batch of a short step: no row of it is there."""
    none, pieces = torch.zeros(2, CONTEXT).long(), torch.zeros(0, 4).long()
    return MicroBatch(none, none - 100, none, pieces, torch.zeros(0))


def log_probabilities(module: Any) -> tuple[Tensor, Tensor]:
    """Of the answer of each sequence, from its logits alone, and the tokens of the answer."""
    found, counts = [], []
    for ids, prompt in sequences():
        scores = module(input_ids=ids.unsqueeze(0)).logits[0].log_softmax(-1)
        found.append(scores[prompt - 1 : -1].gather(1, ids[prompt:, None]).sum())
        counts.append(len(ids) - prompt)
    return torch.stack(found), torch.tensor(counts)


def plain_loss(module: Any, name: str, base: Tensor) -> Tensor:
    """Each loss once more, written out from its paper."""
    if name == "reward":
        scores = torch.stack([module(input_ids=ids.unsqueeze(0)).logits[0, 0] for ids, _ in sequences()])
        return -(scores[0::2] - scores[1::2]).sigmoid().log().sum()
    sums, counts = log_probabilities(module)
    if name == "sft":
        return -sums.sum()
    ratios = sums - base
    if name == "dpo":
        z = 0.3 * (ratios[0::2] - ratios[1::2])
        return -(0.9 * z.sigmoid().log() + 0.1 * (-z).sigmoid().log()).sum()
    each = ratios / counts
    difference = each[0::2] - each[1::2]
    return (-(2.0 * difference).sigmoid().log() if name.startswith("length") else (difference - 1.25) ** 2).sum()


def theirs(folder: Path, name: str, task: Task) -> Any:
    if name != "reward":
        return transformers.AutoModelForCausalLM.from_pretrained(folder)
    kind = transformers.AutoModelForSequenceClassification
    module = kind.from_pretrained(folder, num_labels=1)
    module.load_state_dict(task.module.state_dict())  # its score is new
    return module


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_of_packed_rows_are_those_of_plain_transformers(
    name: str, make: Make, folder: Path
) -> None:
    task = make(OBJECTIVES[name])
    loss, right = task.measure(packed(OBJECTIVES[name]["kind"]))
    module = theirs(folder, name, task)
    wanted = plain_loss(module, name, reference())
    assert loss.dtype == torch.float32 and (right is None) == (name == "sft")
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    loss.backward(), wanted.backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for key, parameter in task.module.named_parameters():
        assert (parameter.grad - gradients[key]).norm() <= 1e-5 * gradients[key].norm(), key


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_are_missing_give_a_loss_and_gradients_of_0(name: str, dtype: str, make: Make) -> None:
    task = make(OBJECTIVES[name], dtype=dtype)
    loss, right = task.measure(missing())
    assert loss.item() == 0
    assert right is None or right.item() == 0
    if loss.requires_grad:
        loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in task.module.parameters()), "and nothing is NaN"


def test_the_stream_of_plain_text_is_one_sequence_a_row(make: Make, folder: Path) -> None:
    task = make({"kind": "causal"})
    tokens = torch.randint(1, 64, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[1, 5:9] = -100
    logits = transformers.AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss, right = task.measure(MicroBatch(tokens, targets))
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    assert right is None
    nothing = task.loss(MicroBatch(tokens, torch.full_like(targets, -100)))
    nothing.backward()
    assert nothing.item() == 0 and not any(p.grad.isnan().any() for p in task.module.parameters())


@pytest.mark.parametrize(("kind", "terms"), [("causal", 70), ("sft", 70), ("dpo", 4), ("reward", 4)])
def test_what_a_sum_is_divided_by(kind: str, terms: int, make: Make) -> None:
    assert make({"kind": kind}).terms(70, 8) == terms


@torch.no_grad()
def test_log_probabilities_and_pairs_ranked_right_are_counted(make: Make, folder: Path) -> None:
    task = make({"kind": "dpo"})
    assert task.log_probabilities is not None
    sums, _ = log_probabilities(transformers.AutoModelForCausalLM.from_pretrained(folder))
    batch = packed("dpo")
    torch.testing.assert_close(task.log_probabilities(batch), sums, rtol=1e-5, atol=0)
    ratios = sums - reference()
    _, right = task.measure(batch)
    assert right is not None and right.item() == (ratios[0::2] > ratios[1::2]).sum()
    assert make({"kind": "sft"}).log_probabilities is None


def test_the_base_as_reference_starts_at_no_difference_and_gets_no_gradient(make: Make) -> None:
    task = make({"kind": "dpo", "reference": "base"}, lora={"rank": 4})
    batch = packed("dpo")
    start = len(ROWS) * math.log(2)
    assert task.loss(batch).item() == pytest.approx(start, rel=1e-6)
    adapters = [p for name, p in task.module.named_parameters() if "lora_B" in name]
    task.loss(batch).backward()
    with torch.no_grad():
        for adapter in adapters:
            adapter -= 0.1 * adapter.grad
    assert task.loss(batch).item() < start
    assert all(p.grad is None for p in task.module.parameters() if not p.requires_grad)


@torch.no_grad()
def test_a_base_as_reference_is_the_reference_at_the_start(make: Make) -> None:
    """Computed in each step or once and kept: the loss is the same."""
    tasks = [make({"kind": "dpo", "reference": kind}, lora={"rank": 4}) for kind in ("base", "start")]
    batch = packed("dpo")
    assert tasks[1].log_probabilities is not None
    kept = MicroBatch(batch.tokens, batch.targets, batch.positions, batch.pieces, tasks[1].log_probabilities(batch))
    for task in tasks:
        torch.manual_seed(3)
        for name, parameter in task.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    assert torch.equal(tasks[0].loss(batch), tasks[1].loss(kept))


def test_the_score_is_computed_in_float32_also_under_bfloat16(make: Make) -> None:
    task = make({"kind": "reward"}, dtype="bfloat16")
    seen: list[torch.dtype] = []
    score = next(module for name, module in task.module.named_modules() if name == "score")
    score.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    task.loss(packed("reward"))
    assert seen == [torch.float32, torch.float32]


def test_a_reward_model_writes_no_text(make: Make) -> None:
    assert make({"kind": "reward"}).generate is None
    assert make({"kind": "sft"}).generate is not None


@pytest.mark.parametrize(
    ("objective", "packing", "way_out"),
    [("sft", True, "set data.packing to false"), ("sft", False, None), ("causal", True, None),
     ("dpo", False, "choose another architecture"), ("reward", True, "choose another architecture")],
)  # fmt: skip
def test_an_architecture_that_mixes_the_samples_of_a_row_is_refused_where_that_matters(
    objective: str, packing: bool, way_out: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    data = {"context": CONTEXT, "packing": packing}
    wish = {"steps": 1, "data": data, "model": {"path": str(tmp_path)}, "objective": {"kind": objective}}
    settings = {"seed": 1, "vocabulary": 64, "eos": 0, "tokenizer_file": tmp_path / "none", "base": tmp_path}
    if way_out is None:
        build(Recipe.model_validate(wish), **settings)
        return
    with pytest.raises(RecipeError, match=f"Bloom.* of .* mixes the samples of a row, .*; {way_out}"):
        build(Recipe.model_validate(wish), **settings)
