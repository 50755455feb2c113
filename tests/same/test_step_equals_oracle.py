"""Law 2: N replicas give, bit for bit, what a short tree in plain PyTorch gives, and nearly what backward gives."""

import copy

import pytest
import torch
from oracle import step_gradient, tree_sum
from torch import nn
from torch.nn import functional as F

from samestep.model.optim import SGD, AdamW
from samestep.replica.step import Step
from samestep.wire import loopback

VOCABULARY, WIDTH, TARGETS = 50, 24, 137.0
IGNORED = -100


class Tied(nn.Module):
    """Tied weights, a parameter that only some lanes use, and one that nobody does."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.nobody = nn.Linear(3, 3)
        self.some = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, tokens, some):
        hidden = self.norm(self.embedding(tokens) + self.down(torch.relu(self.up(self.embedding(tokens)))))
        return (hidden + self.some if some else hidden) @ self.embedding.weight.T


def micro_batch(lane, micro):
    """Two rows of 7 tokens of which between none and five targets a row are masked."""
    generator = torch.Generator().manual_seed(100 * lane + micro)
    tokens = torch.randint(0, VOCABULARY, (2, 7), generator=generator)
    targets = torch.randint(0, VOCABULARY, (2, 7), generator=generator)
    targets[:, : (lane + micro) % 6] = IGNORED
    return tokens, targets


def loss_of(module, lane, micro):
    tokens, targets = micro_batch(lane, micro)
    logits = module(tokens, some=lane % 3 == 0 and micro % 2 == 0)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum") / TARGETS


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return Tied()


def lane_losses(module, lanes, accumulate):
    return [[lambda a=a, b=b: loss_of(module, a, b) for b in range(accumulate)] for a in range(lanes)]


def run_step(module, replicas, lanes, accumulate, rule, steps=1, clip=None):
    """By replica: the sums of the last step, the pieces of the step's gradient that it owns, the weights."""

    def replica(wire):
        mine = copy.deepcopy(module)
        step = Step(mine, wire, rule, lanes=lanes, accumulate=accumulate, clip=clip, bucket=2048)
        for _ in range(steps):
            for lane in step.lanes:
                for micro in range(accumulate):
                    step.backward(loss_of(mine, lane, micro))
            sums = step.reduce()
            gradient = step.owned_gradient()
            step.propose(1e-2)
            step.commit()
        return sums, gradient, {name: p.detach().clone() for name, p in mine.named_parameters()}

    return loopback.run(replicas, replica)


def put_together(results, parameters):
    """The whole gradient of each parameter from the owners' pieces; zero where nobody owns anything."""
    whole = [torch.zeros(p.numel()) for p in parameters]
    for _, gradient, _ in results:
        for (parameter, start), piece in gradient.items():
            whole[parameter][start : start + piece.numel()] = piece
    return [w.view(p.shape) for w, p in zip(whole, parameters, strict=True)]


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("lanes", range(1, 21))
def test_one_step_has_the_bits_of_the_oracle_at_any_number_of_replicas(module, lanes):
    for accumulate in (1, 2, 3):
        parameters = list(module.parameters())
        wanted = step_gradient(parameters, lane_losses(module, lanes, accumulate))
        loss = tree_sum([sum(float(f().detach()) for f in lane) for lane in lane_losses(module, lanes, accumulate)])
        for replicas in sorted({1, 2, 3, 5, 8, lanes} & set(range(1, lanes + 1))):
            results = run_step(module, replicas, lanes, accumulate, SGD())
            for got, want in zip(put_together(results, parameters), wanted, strict=True):
                assert same_bits(got, torch.zeros_like(got) if want is None else want)
            assert {sums.loss for sums, _, _ in results} == {loss}


@pytest.mark.parametrize("rule", [AdamW(), SGD()], ids=["adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_several_steps_give_all_replicas_the_weights_and_sums_of_one(module, rule, clip):
    (alone,) = run_step(module, 1, 8, 2, rule, steps=4, clip=clip)
    for replicas in (2, 3, 4, 5, 8):
        for sums, _, weights in run_step(module, replicas, 8, 2, rule, steps=4, clip=clip):
            assert sums == alone[0]
            assert all(same_bits(weights[name], alone[2][name]) for name in weights)


def test_the_step_is_close_to_plain_backward_over_the_whole_batch(module):
    lanes, accumulate = 8, 2
    plain = copy.deepcopy(module)
    loss = sum(loss_of(plain, lane, micro) for lane in range(lanes) for micro in range(accumulate))
    loss.backward()
    results = run_step(module, 3, lanes, accumulate, AdamW())
    assert abs(results[0][0].loss - loss.item()) <= 1e-5 * loss.item()
    for got, parameter in zip(put_together(results, list(plain.parameters())), plain.parameters(), strict=True):
        want = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_the_weights_are_close_to_those_of_torch_with_the_same_optimizer(module):
    plain = copy.deepcopy(module)
    matrices = [p for p in plain.parameters() if p.dim() >= 2]
    vectors = [p for p in plain.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for _ in range(4):
        optimizer.zero_grad()
        sum(loss_of(plain, lane, micro) for lane in range(8) for micro in range(2)).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()
    for sums, _, weights in run_step(module, 3, 8, 2, AdamW(), steps=4, clip=0.05):
        assert sums.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
        for name, parameter in plain.named_parameters():
            assert (weights[name] - parameter).norm() <= 1e-4 * parameter.norm().clamp(min=1e-3)


def test_what_nobody_uses_is_left_alone_and_what_some_use_is_not(module):
    for _, _, weights in run_step(module, 3, 8, 2, AdamW(), steps=2):
        assert same_bits(weights["nobody.weight"], module.nobody.weight)
        assert not same_bits(weights["some"], module.some)


def test_a_bug_in_the_order_of_additions_would_be_seen(module):
    """The oracle's own teeth: a plain running sum over the lanes has other bits than the tree."""
    parameters = [module.embedding.weight]
    losses = lane_losses(module, 8, 1)
    tree = step_gradient(parameters, losses)[0]
    chain = torch.zeros_like(tree)
    for (loss,) in losses:
        chain += torch.autograd.grad(loss(), parameters)[0]
    assert not same_bits(tree, chain)
