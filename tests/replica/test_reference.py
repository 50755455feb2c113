import pytest
import torch
from torch import nn

from samestep.model.task import Task
from samestep.recipe.schema import Recipe
from samestep.replica import reference
from samestep.replica.job import Job
from samestep.replica.setup import fixed_of
from samestep.wire import loopback

TRAIN, HELD_OUT = [5, 4, 3, 3, 40, 6, 6, 2, 7, 7], [4, 3, 5, 5]  # pairs; the third one is too long

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def job(write_corpus, tmp_path):
    def job(cache, kind="dpo", **objective):
        recipe = Recipe(
            steps=1,
            model={"path": "m", "lora": {}},
            data={"context": 16, "too_long": "skip"},
            batch={"micro_batch": 1},
            objective={"kind": kind, **objective},
        )
        folder = tmp_path / cache / "corpus"
        if not folder.exists():
            write_corpus(f"{cache}/corpus", "preference", TRAIN, HELD_OUT)
        return Job("train", recipe, tmp_path, [folder], tmp_path, 1, 1)

    return job


def weights(seed=0):
    torch.manual_seed(seed)
    return nn.Embedding(50, 1)


def task_with(module, calls):
    """A sequence's log-probability is the sum of what the module has for its input tokens."""

    def log_probabilities(batch):
        assert not module.training and not torch.is_grad_enabled()
        calls.append(1)
        values = module(batch.tokens)[..., 0]
        return torch.stack([values[row, first:stop].sum() for row, first, stop, _ in batch.pieces.tolist()])

    return Task(module, None, None, None, log_probabilities, None, None, None)


def attached(job, replicas, seed=0):
    """Of each replica the references of the training and the held-out rows; and how often the model was asked."""
    calls = []
    tasks = [task_with(weights(seed), calls) for _ in range(replicas)]  # seeds are drawn by one thread

    def replica(wire):
        readers = {part: fixed_of(job, part).reader for part in ("train", "held_out")}
        reference.attach(job, tasks[wire.rank], wire, readers)
        assert tasks[wire.rank].module.training
        return [readers[part].reference for part in ("train", "held_out")]

    return loopback.run(replicas, replica), len(calls)


def expected(lengths, seed=0):
    values = weights(seed).weight.detach()[:, 0]
    sums = [values[4 : 4 + length - 1].sum() for length in lengths]  # the last token is a target only
    return torch.stack([torch.zeros(()) if i // 2 * 2 == 4 else total for i, total in enumerate(sums)])


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_references_are_the_same_at_any_number_of_replicas_and_kept(job, replicas):
    alone, _ = attached(job("alone"), 1)
    here = job("here")
    for asked in (True, False):  # the second time from the cache
        found, calls = attached(here, replicas)
        assert bool(calls) == asked
        for parts in found:
            assert all(torch.equal(mine, first) for mine, first in zip(parts, alone[0], strict=True))
    assert [part.dtype for part in alone[0]] == [torch.float32] * 2
    torch.testing.assert_close(alone[0][0], expected(TRAIN))
    torch.testing.assert_close(alone[0][1], expected(HELD_OUT))


def test_each_micro_batch_is_computed_by_one_replica(job):
    rows = [len(fixed_of(job("one"), part)) for part in ("train", "held_out")]
    assert attached(job("one"), 3)[1] == sum(rows)


def test_other_weights_have_other_references(job):
    first, _ = attached(job("one"), 1)
    second, calls = attached(job("one"), 1, seed=1)
    assert calls and not torch.equal(first[0][0], second[0][0])


def test_a_replica_without_the_cache_makes_all_compute(job, monkeypatch):
    found, _ = attached(job("one"), 2)
    read, left = reference._read, [None]
    monkeypatch.setattr(reference, "_read", lambda folder: left.pop() if left else read(folder))
    again, calls = attached(job("one"), 2)
    assert calls and all(torch.equal(mine, found[0][0]) for mine, _ in again)


@pytest.mark.parametrize("objective", [{"kind": "dpo", "reference": "base"}, {"kind": "reward"}])
def test_objectives_that_need_none_get_none(job, objective):
    found, calls = attached(job("one", **objective), 1)
    assert (found, calls) == ([[None, None]], 0)
