import math

import numpy as np
import pytest
import torch
from torch import nn

from samestep.data.corpus import Tokens
from samestep.data.feed import IGNORED, Fixed, Source
from samestep.data.pack import apart, fit, stream
from samestep.evaluate.heldout import HeldOut, evaluate
from samestep.model.task import Task
from samestep.wire import loopback

VOCABULARY = 11


def corpus():
    ids = np.random.default_rng(0).integers(1, VOCABULARY, 203).astype(np.uint16)
    ends = np.array([40, 90, 203])
    ids[ends - 1] = 0
    return Tokens(ids, ends)


def documents():
    tokens = corpus()
    return Fixed([Source(tokens, stream(tokens.ends, 8, False))], context=8, micro_batch=3, eos=0)


def pairs(count):
    """Pairs of sequences of 3 and 4 tokens, two of them a row."""
    ends = np.cumsum([3, 4] * count)
    tokens = Tokens(np.zeros(7 * count, np.uint16), ends)
    rows = apart(ends, fit(ends, None, 10, together=2), 10, together=2)
    return Fixed([Source(tokens, rows)], context=10, micro_batch=2, eos=0)


def task_that(measure, terms):
    return Task(nn.Linear(1, 1), lambda batch: measure(batch)[0], measure, terms, None, None, None, None)


def uniform():
    """A model that finds every token equally likely."""
    return task_that(
        lambda batch: ((batch.targets != IGNORED).sum() * math.log(VOCABULARY), None), lambda targets, pieces: targets
    )


def ranking():
    """Every pair costs a sum that no order of additions may change; of each pair whose number is no multiple of 3 the
    chosen one is ranked first.
    """

    def measure(batch):
        numbers = batch.pieces[::2, 3] // 2
        return (0.1 + numbers.double()).sum().float(), (numbers % 3 > 0).sum()

    return task_that(measure, lambda targets, pieces: pieces // 2)


@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
def test_every_held_out_token_counts_once_at_any_number_of_replicas(replicas):
    found = loopback.run(replicas, lambda wire: evaluate(uniform(), documents(), wire, 1))
    assert all(f == found[0] for f in found)
    assert found[0].targets == found[0].terms == 203 - 3  # nothing predicts the first of a document
    assert found[0].loss == pytest.approx(math.log(VOCABULARY))
    assert found[0].accuracy is None


@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
def test_every_held_out_pair_counts_once_at_any_number_of_replicas(replicas):
    found = loopback.run(replicas, lambda wire: evaluate(ranking(), pairs(9), wire, 1))
    alone = evaluate(ranking(), pairs(9), loopback.connect(1)[0], 1)
    assert all(f == alone for f in found)
    assert (alone.terms, alone.right, alone.targets) == (9, 6, 9 * 5)
    assert (alone.loss, alone.accuracy) == (pytest.approx(4.1), pytest.approx(6 / 9))


def test_no_pair_ranked_right_is_an_accuracy_of_nought():
    assert evaluate(ranking(), pairs(1), loopback.connect(1)[0], 1).accuracy == 0.0


def test_the_module_keeps_its_mode_and_gets_no_gradient():
    for training in (True, False):
        task = uniform()
        task.module.train(training)
        loopback.run(1, lambda wire, task=task: evaluate(task, documents(), wire, 1))
        assert task.module.training is training
        assert task.module.weight.grad is None and torch.is_grad_enabled()


def test_bits_per_byte_charges_what_nothing_predicts():
    held_out = HeldOut(total=100 * math.log(2), terms=90, targets=90)
    assert held_out.bits_per_byte(tokens=90, text_bytes=50, vocabulary=256) == pytest.approx(2.0)
    assert held_out.bits_per_byte(tokens=100, text_bytes=50, vocabulary=256) == pytest.approx(2.0 + 10 * 8 / 50)
