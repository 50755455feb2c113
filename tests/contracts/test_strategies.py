"""The laws of every strategy: it trains, all replicas hold one model, and one replica is the plain step."""

import copy

import pytest
import torch
from torch import nn

from samestep.errors import RecipeError, SamestepError
from samestep.model.optim import AdamW
from samestep.replica.agreement import STRATEGIES
from samestep.replica.step import Step
from samestep.wire import loopback


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


def network(*extra):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 300), nn.Tanh(), *extra, nn.Linear(300, 40))


def train(module, strategy, replicas, steps=3, hosts=None, **settings):
    inputs = torch.randn(steps, 8, 5, 6, generator=torch.Generator().manual_seed(3))

    def replica(wire):
        mine = copy.deepcopy(module)
        step = Step(mine, wire, AdamW(), lanes=8, clip=0.5, strategy=strategy, **settings)
        sums = []
        for n in range(steps):
            for lane in step.lanes:
                step.backward(mine(inputs[n, lane]).square().sum() / 40)
            sums.append(step.update(1e-2))
        return sums, torch.cat([p.detach().flatten() for p in mine.parameters()]), wire.bytes_sent

    return loopback.run(replicas, replica, hosts=hosts)


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_all_replicas_hold_the_same_model_and_curve(strategy, replicas):
    results = train(network(), strategy, replicas)
    assert all(r[0] == results[0][0] and torch.equal(r[1], results[0][1]) for r in results)


@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_any_number_of_replicas_is_close_to_one(strategy, replicas):
    alone = train(network(), strategy, 1)[0]
    together = train(network(), strategy, replicas)[0]
    for a, b in zip(alone[0], together[0], strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5) and b.gradient_norm == pytest.approx(a.gradient_norm, rel=1e-4)
    assert (together[1] - alone[1]).norm() <= 1e-3 * alone[1].norm()


def test_the_loss_falls(strategy):
    losses = [sums.loss for sums in train(network(), strategy, 2, steps=6)[0][0]]
    assert losses[-1] < losses[0]


def test_the_size_of_buckets_moves_no_weight(strategy):
    whole = train(network(), strategy, 3, steps=1)[0][1]
    torch.testing.assert_close(train(network(), strategy, 3, steps=1, bucket=1024)[0][1], whole, rtol=1e-6, atol=1e-7)


def test_layers_that_write_buffers_are_refused_with_the_reason(strategy):
    with pytest.raises(RecipeError, match=r"buffer 2\.\w+ in forward; its value would follow the micro-batches"):
        train(network(nn.BatchNorm1d(300)), strategy, 2)


def test_a_loss_that_is_not_finite_is_not_applied_and_names_its_lane(strategy):
    module = network()

    def replica(wire):
        mine = copy.deepcopy(module)
        step = Step(mine, wire, AdamW(), lanes=8, strategy=strategy)
        for lane in step.lanes:
            step.backward(mine(torch.randn(5, 6)).sum() * (float("nan") if lane == 5 else 1.0))
        step.reduce()

    with pytest.raises(SamestepError, match="step 1: the loss of lane 5 is nan; nothing was applied"):
        loopback.run(2, replica)


def test_weights_other_than_float32_are_refused(strategy):
    with pytest.raises(RecipeError, match=r"parameter 0\.weight is bfloat16"):
        train(network().bfloat16(), strategy, 1)


def test_a_frozen_model_is_refused(strategy):
    with pytest.raises(RecipeError, match="nothing can be trained"):
        train(network().requires_grad_(False), strategy, 1)


def test_frozen_parameters_stay_as_they_are(strategy):
    module = network()
    module[0].requires_grad_(False)
    weights = train(module, strategy, 2)[0][1]
    frozen = torch.cat([p.flatten() for p in module[0].parameters()])
    assert torch.equal(weights[: len(frozen)], frozen)


@pytest.mark.parametrize("copies", [1, 2, 8])
def test_exact_sends_no_more_than_a_ring_where_spans_are_subtrees(copies):
    module = network()
    size = sum(-(-p.numel() // 16) * 16 for p in module.parameters()) * 4
    for replicas in (2, 4, 8):
        # Claims, 8 lanes' losses, norms, 4 parameters' presence and a wish, 8 bytes each; the byte that says ready
        scalars = (replicas - 1) * (8 * (replicas + 8 + len(train_layout(module)) + 4 + 1) + 1)
        sent = [result[2] / 3 - scalars for result in train(module, "exact", replicas, copies=copies)]
        assert sum(sent) == pytest.approx(2 * size * (replicas - 1))


@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_copies_of_the_moments_change_no_bit(replicas):
    alone = train(network(), "exact", 1)[0]
    for copies in (1, 2, 8):
        for result in train(network(), "exact", replicas, copies=copies):
            assert result[0] == alone[0] and torch.equal(result[1], alone[1])


@pytest.mark.parametrize(
    "hosts", [[0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1, 2]], ids=lambda hosts: "".join(map(str, hosts))
)
@pytest.mark.parametrize("copies", [1, 2, 8])
def test_hosts_change_no_bit_and_the_sums_of_each_cross_together(hosts, copies):
    alone, spread = train(network(), "exact", 1)[0], train(network(), "exact", len(hosts), hosts=hosts, copies=copies)
    for result in spread:
        assert result[0] == alone[0] and torch.equal(result[1], alone[1])
    near = train(network(), "exact", len(hosts), copies=copies)
    assert [result[2] for result in spread] != [result[2] for result in near]


def train_layout(module):
    from samestep.sync.slices import layout

    return layout([p.numel() for p in module.parameters()], 8).pieces
