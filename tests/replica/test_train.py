"""The loop computes each micro-batch once, with its own random numbers and its share of the step's tokens."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from samestep.data.feed import IGNORED
from samestep.errors import Corrupted
from samestep.model.optim import AdamW
from samestep.recipe.schema import Recipe
from samestep.replica import train
from samestep.replica.board import Wish
from samestep.replica.step import Step
from samestep.wire import loopback

STEPS, LANES, ACCUMULATE = 3, 4, 2


class Data:
    """In the place of a Feed: micro-batch (n, lane, micro) has n + lane + micro + 1 tokens, and one that is masked."""

    def step(self, n):
        sizes = [n + lane + micro + 1 for lane in range(LANES) for micro in range(ACCUMULATE)]
        return SimpleNamespace(number=n, targets=sum(sizes), pieces=None)

    def micro_batch(self, plan, lane, micro):
        targets = torch.ones(plan.number + lane + micro + 2)
        targets[0] = IGNORED
        return SimpleNamespace(place=(plan.number, lane, micro), targets=targets)


class Going:
    """In the place of a Run."""

    def __init__(self, wire, seeds):
        torch.manual_seed(0)
        module = nn.Linear(1, 1, bias=False)
        nn.init.ones_(module.weight)
        self.drawn = []
        self.wire, self.generation, self.seconds, self.feed = wire, 1, [], Data()
        self.job = SimpleNamespace(
            recipe=Recipe(steps=STEPS, lanes=LANES, batch={"accumulate": ACCUMULATE}), steps=STEPS
        )
        self.step = Step(module, wire, AdamW(), lanes=LANES, accumulate=ACCUMULATE)
        self.control = SimpleNamespace(phase=lambda *_: None, wish=lambda _: Wish.NONE)
        self.task = SimpleNamespace(loss=self._loss, terms=lambda targets, pieces: targets)
        self._module, self._seeds = module, seeds

    def tell_of_shortage(self):
        """Loopback has none."""

    @property
    def over(self):
        return self.step.number == STEPS

    def _loss(self, batch):
        self.drawn.append((batch.place, self._seeds.last))
        return self._module(batch.targets[batch.targets != IGNORED, None]).sum()


@pytest.fixture
def seeds(monkeypatch):
    """What each thread has seeded with last: all share one generator."""
    seeds = threading.local()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: setattr(seeds, "last", seed))
    monkeypatch.setattr(train, "end", lambda run, stopped: True)
    return seeds


def trained(monkeypatch, seeds, replicas):
    """(step, lane, micro) -> seed, over all replicas, and the loss of each step."""
    losses = []

    def after(run):
        if run.wire.rank == 0 and run.step.number:
            losses.append(run.step.sums.loss)
        return Wish.NONE

    def replica(wire):
        run = Going(wire, seeds)
        assert train.steps(run)
        return run.drawn

    monkeypatch.setattr(train, "after", after)
    drawn = [one for found in loopback.run(replicas, replica) for one in found]
    assert len(drawn) == STEPS * LANES * ACCUMULATE
    return dict(drawn), losses


def test_what_has_changed_after_the_last_step_is_not_exported(monkeypatch):
    exported = []
    monkeypatch.setattr(train, "finish", exported.append)
    module = nn.Linear(1, 1, bias=False)
    step = Step(module, loopback.connect(1)[0], AdamW(), lanes=1, scrub=1)
    step.backward(module(torch.ones(1)).sum())
    step.update(0.1)
    run = SimpleNamespace(checkpoints=SimpleNamespace(wait=lambda: None), step=step, job=SimpleNamespace(finish=True))
    step.state.weights[0] += 1
    with pytest.raises(Corrupted, match="weights of weight changed while it rested after step 1"):
        train.end(run, stopped=False)
    assert not exported


def test_each_micro_batch_of_each_step_is_computed_once_with_a_seed_of_its_own(monkeypatch, seeds):
    alone, _ = trained(monkeypatch, seeds, 1)
    places = {(n, lane, micro) for n in range(STEPS) for lane in range(LANES) for micro in range(ACCUMULATE)}
    assert alone.keys() == places and len(set(alone.values())) == len(places)
    for replicas in (2, 3, 4):
        assert trained(monkeypatch, seeds, replicas)[0] == alone


@pytest.mark.parametrize("replicas", [1, 3])
def test_every_token_of_a_step_weighs_the_same(monkeypatch, seeds, replicas):
    _, losses = trained(monkeypatch, seeds, replicas)
    assert losses[0] == pytest.approx(1.0)  # each token's loss is 1 under the first weights
    assert len(losses) == STEPS
