import math

import numpy as np
import pytest
import torch
from torch import nn

from samestep.data.feed import IGNORED, Fixed
from samestep.data.pack import plan
from samestep.data.tokenize import Tokens
from samestep.evaluate.heldout import HeldOut, evaluate
from samestep.model.task import Task
from samestep.wire import loopback

VOCABULARY = 11


def corpus():
    ids = np.random.default_rng(0).integers(1, VOCABULARY, 203).astype(np.uint16)
    ends = np.array([40, 90, 203])
    ids[ends - 1] = 0
    return Tokens(ids, ends)


def uniform():
    """A model that finds every token equally likely."""
    module = nn.Linear(1, 1)

    def loss(batch):
        return (batch.targets != IGNORED).sum() * math.log(VOCABULARY)

    return Task(module, loss, None, None)


@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
def test_every_held_out_token_counts_once_at_any_number_of_replicas(replicas):
    tokens = corpus()
    rows = Fixed(tokens, plan(tokens.ends, 8, False), context=8, micro_batch=3, eos=0)
    found = loopback.run(replicas, lambda wire: evaluate(uniform(), rows, wire, 1))
    assert all(f == found[0] for f in found)
    assert found[0].targets == 203 - 3  # nothing predicts the first of a document
    assert found[0].loss == pytest.approx(math.log(VOCABULARY))


def test_the_module_keeps_its_mode_and_gets_no_gradient():
    tokens = corpus()
    task = uniform()
    task.module.train()
    rows = Fixed(tokens, plan(tokens.ends, 8, False), context=8, micro_batch=3, eos=0)
    loopback.run(1, lambda wire: evaluate(task, rows, wire, 1))
    assert task.module.training and task.module.weight.grad is None and torch.is_grad_enabled()


def test_bits_per_byte_charges_what_nothing_predicts():
    held_out = HeldOut(nats=100 * math.log(2), targets=90)
    assert held_out.bits_per_byte(tokens=90, text_bytes=50, vocabulary=256) == pytest.approx(2.0)
    assert held_out.bits_per_byte(tokens=100, text_bytes=50, vocabulary=256) == pytest.approx(2.0 + 10 * 8 / 50)
