"""What a pilot tries for real: steps, and a process without a model."""

from dataclasses import replace

import pytest
import torch

from samestep.recipe.schema import Recipe
from samestep.replica import trial
from samestep.replica.job import Job
from samestep.replica.pilot import alone
from samestep.replica.setup import feed_of, task_of
from samestep.wire import loopback

STATUS = "Name:\tpython\nRssAnon:\t    100 kB\nRssFile:\t     7 kB\nRssShmem:\t     3 kB\n"


@pytest.fixture
def job(write_corpus, tmp_path):
    corpus = write_corpus("corpus", "text", [40] * 16, [5])
    model = {"layers": 1, "width": 32, "heads": 1, "dtype": "float32"}
    settings = {
        "data": {"context": 32},
        "lanes": 4,
        "sync": {"state": "sharded"},
        "batch": {"micro_batch": 1, "accumulate": 2},
        "model": model,
    }
    return Job("pilot", Recipe(steps=9, **settings), tmp_path, [corpus], tmp_path, 9, 9)


def on(replicas, job, work):
    made = [(task_of(job), feed_of(job)) for _ in range(replicas)]  # threads of 3.11 cannot share what reads headers
    return loopback.run(replicas, lambda wire: work(*made[wire.rank], wire))


@pytest.mark.parametrize("replicas", [1, 2])
def test_real_steps_are_timed_by_phase(job, told, replicas):
    for found in on(replicas, job, lambda task, feed, wire: trial.phases(job, task, feed, wire, told())):
        assert set(found) == {"micro", "exchange", "update"} and min(found.values()) > 0


def test_islands_make_real_steps_too(job, told):
    sync = job.recipe.sync.model_copy(update={"strategy": "diloco"})
    islands = replace(job, recipe=job.recipe.model_copy(update={"sync": sync}))
    (found,) = on(1, islands, lambda task, feed, wire: trial.phases(islands, task, feed, wire, told()))
    assert found["micro"] > 0


def test_long_steps_are_made_twice(job, told, monkeypatch):
    made = []
    monkeypatch.setattr(trial, "LONG", 0.0)
    monkeypatch.setattr(trial, "_timed", lambda *given: made.append(given) or [1.0, 0.1, 0.1])
    on(1, job, lambda task, feed, wire: trial.phases(job, task, feed, wire, told()))
    assert len(made) == 2


def test_all_learn_what_one_took_while_the_others_waited(job, told):
    def work(task, feed, wire):
        control = told()
        return alone(job, task, feed.micro_batch(feed.step(0), 0, 0), wire, control), control.phases

    (took, _), (heard, phases) = on(2, job, work)
    assert took == heard > 0
    assert phases == [(1, "EXCHANGE")]  # where a replica may wait and is not to blame


def test_a_process_without_a_model_is_measured_after_its_first_step(job):
    found = trial.program(job)
    assert found["private"] > 50e6 and found["mapped"] > 10e6


def test_memory_of_files_stands_apart(tmp_path):
    (tmp_path / "status").write_text(STATUS)
    assert trial.resident(tmp_path / "status") == {"private": 100 * 1024, "mapped": 7 * 1024}


def test_what_is_frozen_lies_in_memory_or_in_its_file(job, tmp_path):
    task = task_of(job)
    assert trial.frozen(task) == {"all": 0, "mapped": 0, "wide": False}
    first, second, *_ = (tensor for tensor in task.module.parameters() if tensor.dim() > 1)
    stored = torch.from_file(str(tmp_path / "weights"), shared=True, size=second.numel()).view(second.shape)
    second.data = stored
    for tensor in (first, second):
        tensor.requires_grad_(False)
    sizes = {"all": first.nbytes + second.nbytes, "mapped": second.nbytes}
    assert trial.frozen(task) == sizes | {"wide": True}
    first.data, second.data = first.data.bfloat16(), second.data.bfloat16()
    assert trial.frozen(task)["wide"] is False
