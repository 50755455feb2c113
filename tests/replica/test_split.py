"""A model over several processes of a replica: the same gradients, and law 1 between replicas."""

import json
from functools import partial

import pytest
import torch

from samestep.model.optim import AdamW
from samestep.recover import digest
from samestep.replica.split import blocks, over, rows
from samestep.replica.step import Step
from samestep.sync.flat import here
from tests.replica.shards import BUILT_IN, VOCABULARY, batch, columns, forked, shards, task_of

LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
QWEN = LLAMA | {"model_type": "qwen3"}  # with norms inside the heads, whose gradients are summed over the shards
CONFIGS = {"llama": LLAMA, "qwen3": QWEN}
LANES, STEPS, TERMS = 3, 2, 100.0


@pytest.fixture
def make(tmp_path):
    """kind -> a function that makes its task."""

    def make(kind, **sections):
        if kind not in CONFIGS:
            return partial(task_of, tmp_path, BUILT_IN | ({"tied": False} if kind == "untied" else {}), **sections)
        (tmp_path / f"{kind}.json").write_text(json.dumps(CONFIGS[kind]))
        return partial(task_of, tmp_path, {"config": f"{kind}.json", "dtype": "float32"}, **sections)

    return make


def gradients(task, number=0):
    """The loss and the gradient of each parameter."""
    loss = task.loss(batch(number)) / TERMS
    loss.backward()
    return loss.item(), {name: here(p.grad) for name, p in task.module.named_parameters()}


def split_gradients(how, make, inside):
    task, split = over(inside, how, make)
    loss, found = gradients(task)
    return loss, {name: split.whole(name, gradient).clone().numpy() for name, gradient in found.items()}


@pytest.mark.parametrize("how", ["full", "tensor"])
@pytest.mark.parametrize("kind", ["built-in", "untied", "llama", "qwen3"])
def test_the_gradients_of_two_shards_are_those_of_the_whole_model(tmp_path, make, how, kind):
    found = forked(shards(tmp_path / "meeting", 2, partial(split_gradients, how, make(kind))))
    loss, wanted = gradients(make(kind)())
    for mine, split in found:
        assert mine == pytest.approx(loss, abs=1e-5)
        assert split.keys() == wanted.keys()
        for name, gradient in split.items():
            assert torch.allclose(torch.from_numpy(gradient), wanted[name], rtol=0, atol=1e-5), name
    assert max(gradient.abs().max() for gradient in wanted.values()) > 1e-2  # so that 1e-5 says something


def trained(how, make, steps, inside, wire):
    """Losses, norms and the digest of the weights after some steps, as this column has them."""
    task, split = over(inside, how, make)
    step = Step(task.module, wire, AdamW(), lanes=LANES, accumulate=2, clip=0.5, scrub=1, split=split)
    step.seal()
    sums = []
    for _ in range(steps):
        for lane in step.lanes:
            for micro in range(2):
                step.backward(task.loss(batch(100 * step.number + 10 * lane + micro)) / TERMS)
        sums.append(step.update(1e-2)[:2])
    return sums, digest.of_tensors(dict(step.whole()))


@pytest.mark.parametrize("how", ["full", "tensor"])
def test_one_two_and_three_replicas_of_two_shards_have_one_digest(tmp_path, make, how):
    found = []
    for replicas in (1, 2, 3):
        work = partial(trained, how, make("built-in"), STEPS)
        for columns_of_one in columns(tmp_path / f"meeting-{replicas}", replicas, 2, work):
            found += columns_of_one
    assert len(found) == 12 and all(each == found[0] for each in found)


@pytest.mark.parametrize("how", ["full", "tensor"])
def test_the_norm_that_clips_is_that_of_the_whole_model(tmp_path, make, how):
    ((sums, _), _) = columns(tmp_path / "meeting", 1, 2, partial(trained, how, make("llama"), 1))[0]
    task, total = make("llama")(), {}
    for lane in range(LANES):
        for micro in range(2):
            (task.loss(batch(10 * lane + micro)) / TERMS).backward()
    total = torch.stack([p.grad.norm() for p in task.module.parameters()]).norm()
    assert sums[0][1] == pytest.approx(total.item(), rel=1e-5)


def test_rows_are_divided_in_order():
    whole = batch(0)
    parts = [rows(whole, k, 2) for k in range(2)]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_blocks_are_the_layers_one_after_the_other(make):
    assert [type(layer).__name__ for layer in blocks(make("built-in")().module)] == ["Layer"] * 2
