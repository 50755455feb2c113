import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from samestep.data.order import mix
from samestep.errors import NotFinite
from samestep.model.optim import SGD
from samestep.model.task import Task
from samestep.recipe.schema import Recipe
from samestep.recover import journal
from samestep.replica.job import Job
from samestep.replica.notfinite import Origin, event, explained, traced
from samestep.replica.setup import feed_of
from samestep.replica.step import Step
from samestep.wire import loopback

REPLICAS = pytest.mark.parametrize("replicas", [1, 2, 3])
ADVICE = "; nothing was applied; lower optimizer.learning_rate"


class Model(nn.Module):
    """A number for each token, through a function of them. Token w20 stands in the last sequence only."""

    def __init__(self, function):
        super().__init__()
        self.table, self.function = nn.Embedding(50, 1), function
        nn.init.constant_(self.table.weight, 1.0)

    def forward(self, tokens):
        return self.function(self.table(tokens)[..., 0], tokens == 20)


@pytest.fixture
def job(write_corpus, tmp_path):
    corpus = write_corpus("corpus", "text", [9] * 15 + [19], [5])
    settings = {"data": {"context": 32, "packing": False}, "lanes": 4, "batch": {"micro_batch": 2, "accumulate": 2}}
    return Job("train", Recipe(steps=1, seed=3, **settings), tmp_path, [corpus], tmp_path, 1, 1)


def ended(job, told, replicas, function, times=lambda call: 1.0):
    """The message of a first step, and the event, of each replica. times: what the n-th loss of a replica is times."""
    found = []

    feeds = [feed_of(job) for _ in range(replicas)]  # numpy reads headers with ast, which threads of 3.11 cannot share

    def replica(wire):
        module, feed, calls = Model(function), feeds[wire.rank], iter(range(99))
        loss = lambda batch: module(batch.tokens).sum() * times(next(calls))  # noqa: E731
        task = Task(module, loss, None, lambda targets, pieces: 1, None, None, None, None)
        step, control = Step(module, wire, SGD(), lanes=4, accumulate=2), told()
        run = SimpleNamespace(job=job, step=step, task=task, feed=feed, wire=wire, control=control)
        plan = feed.step(0)
        for lane in step.lanes:
            for micro in range(2):
                torch.manual_seed(mix(3, 0, lane, micro))
                step.backward(task.loss(feed.micro_batch(plan, lane, micro)))
        with pytest.raises(NotFinite) as caught, traced(run, plan):
            step.reduce()
        found.append((str(caught.value), control.of("not_finite")))

    loopback.run(replicas, replica)
    assert all(one == found[0] for one in found), "all replicas say the same"
    return found[0][0], found[0][1][0]


def place(job):
    """The lane and the micro-batch that read the last sequence, and the lines of its samples."""
    feed = feed_of(job)
    ((lane, micro, _),) = np.argwhere(feed.step(0).rows == 15).tolist()
    return lane, micro, [f"data.jsonl:{row + 1}" for row in feed.step(0).rows[lane, micro]]


@REPLICAS
def test_a_loss_that_is_not_finite_is_led_back_to_its_samples_and_layer(job, told, replicas):
    message, event = ended(job, told, replicas, lambda values, ill: torch.log(values - ill.float() * 5))
    lane, micro, samples = place(job)
    why = f"micro-batch {micro}; first in Model; samples: {', '.join(samples)}"
    assert message == f"step 1: the loss of lane {lane} is nan ({why}){ADVICE} or look at these samples"
    expected = {"step": 1, "lane": lane, "micro": micro, "samples": samples, "layer": "Model", "backward": False}
    assert event == {"event": "not_finite"} | expected


@REPLICAS
def test_a_gradient_alone_is_led_back_too(job, told, replicas):
    message, event = ended(job, told, replicas, lambda values, ill: torch.sqrt(values - ill * values.detach()))
    lane, micro, samples = place(job)
    why = f"lane {lane}, micro-batch {micro}; first in backward in Model; samples: {', '.join(samples)}"
    assert message == f"step 1: the gradient norm is inf ({why}){ADVICE} or look at these samples"
    assert (event["lane"], event["micro"], event["backward"]) == (lane, micro, True)


@REPLICAS
def test_a_sum_that_overflows_blames_no_sample(job, told, replicas):
    message, event = ended(job, told, replicas, lambda values, ill: (values - values.detach()) * 5e36)
    why = "the gradient of every micro-batch is finite, so only their sum or its norm overflows"
    assert message == f"step 1: the gradient norm is inf ({why}){ADVICE}"
    assert (event["lane"], event["micro"], event["samples"], event["layer"]) == (None, None, [], None)


def test_what_does_not_come_again_is_said(job, told):
    message, event = ended(job, told, 1, lambda values, ill: values, lambda call: torch.nan if call == 3 else 1.0)
    assert message.startswith("step 1: the loss of lane 1 is nan (computed again it is finite); nothing was applied;")
    assert (event["lane"], event["micro"]) == (1, None)


def test_what_is_drawn_is_drawn_again(job, told):
    """One draw of a whole step is taken for the worst; only with the same seed does it come again."""
    draws = [
        torch.manual_seed(mix(3, 0, lane, micro)) and torch.rand(()).item() for lane in range(4) for micro in (0, 1)
    ]
    drawn = lambda values, ill: torch.log(values - (torch.rand(()) >= max(draws)) * 5)  # noqa: E731
    message, event = ended(job, told, 1, drawn)
    assert (event["lane"], event["micro"]) == divmod(draws.index(max(draws)), 2)
    assert "first in Model" in message


def test_weights_that_are_not_finite_are_said(job, told, monkeypatch):
    init = nn.init.constant_
    monkeypatch.setattr(nn.init, "constant_", lambda weight, value: init(weight, torch.nan))
    message, _ = ended(job, told, 1, lambda values, ill: values)
    assert "the loss of lane 0 is nan (micro-batch 0; first in table; table.weight itself is not finite;" in message


def test_many_samples_are_cut_in_the_message_only():
    found, samples = NotFinite("x"), [f"a:{n}" for n in range(5)]
    found.what, found.lane = "the loss of lane 2 is inf", 2
    assert "samples: a:0, a:1, a:2 and 2 more)" in str(explained(0, found, Origin(2, 0, False, 0), samples, "first"))
    assert event(0, found, Origin(2, 0, False, 0), samples, None)["samples"] == samples


def test_a_run_ends_with_one_line_that_is_the_same_at_any_number_of_replicas(samestep, tiny, tmp_path):
    lines = set()
    for replicas in (1, 2, 3):
        wild = ["optimizer.learning_rate=1e30", "optimizer.clip=null", "optimizer.warmup=0"]
        done = samestep("train", tiny, "--run", tmp_path / f"run{replicas}", *wild, f"run.replicas={replicas}")
        (line,) = [line for line in done.err.splitlines() if line.startswith("error")]
        (event,) = [e for e in journal.read(tmp_path / f"run{replicas}/journal.jsonl") if e["event"] == "not_finite"]
        assert done.code == 1 and "Traceback" not in done.err
        del event["rank"]
        lines.add((line, json.dumps(event)))
    ((line, event),) = lines
    assert "step 2: the gradient norm is nan (lane 0, micro-batch 0; first in backward in model.norm; samples:" in line
    assert json.loads(event)["layer"] == "model.norm"
