"""The laws of every optimizer rule."""

import pytest
import torch

from samestep.model import optim
from samestep.model.optim import SGD, AdamW, Rates

RULES = {"adamw": AdamW(0.9, 0.95, 1e-8, 0.1), "sgd": SGD(0.9, 0.1)}
TORCH = {
    "adamw": lambda p: torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD([p], lr=0.01, momentum=0.9, weight_decay=0.1),
}
SIZE = optim.BLOCK + 1003


@pytest.fixture(params=RULES)
def name(request):
    return request.param


def gradients(steps=5, size=SIZE):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator) for _ in range(steps)]


def state(rule, size=SIZE):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(1))
    return weight, [torch.zeros(size) for _ in range(rule.moments)]


def test_it_gives_what_torch_gives(name):
    rule = RULES[name]
    weight, kept = state(rule)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = TORCH[name](parameter)
    for count, gradient in enumerate(gradients(), 1):
        optim.commit(rule, weight, gradient, kept, Rates(0.01, True, count))
        parameter.grad = gradient
        optimizer.step()
        torch.testing.assert_close(weight, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_what_is_proposed_is_what_commit_makes_bit_for_bit(name):
    rule = RULES[name]
    weight, kept = state(rule)
    for count, gradient in enumerate(gradients(), 1):
        before = [t.clone() for t in (weight, *kept)]
        proposal = torch.empty_like(weight)
        optim.propose(rule, weight, gradient, kept, proposal, Rates(0.01, True, count))
        assert all(map(torch.equal, before, (weight, *kept)))
        optim.commit(rule, weight, gradient, kept, Rates(0.01, True, count))
        assert torch.equal(weight, proposal) and not torch.equal(weight, before[0])


def test_pieces_cut_at_blocks_have_the_bits_of_the_whole(name):
    rule = RULES[name]
    (whole, kept), (parts, kept_parts) = state(rule), state(rule)
    for count, gradient in enumerate(gradients(), 1):
        rates = Rates(0.01, True, count)
        optim.commit(rule, whole, gradient, kept, rates)
        for piece in (slice(0, optim.BLOCK), slice(optim.BLOCK, SIZE)):
            optim.commit(rule, parts[piece], gradient[piece], [k[piece] for k in kept_parts], rates)
    assert torch.equal(whole, parts) and all(map(torch.equal, kept, kept_parts))


def test_weight_decay_acts_only_where_it_applies(name):
    rule = RULES[name]
    (with_decay, kept), (without, kept_without) = state(rule), state(rule)
    gradient = torch.zeros(SIZE)
    optim.commit(rule, with_decay, gradient, kept, Rates(0.01, True, 1))
    optim.commit(rule, without, gradient, kept_without, Rates(0.01, False, 1))
    assert torch.equal(without, state(rule)[0]) and (with_decay.abs() <= without.abs()).all()
    assert not torch.equal(with_decay, without)


def test_the_recipe_names_it(name):
    from samestep.recipe.schema import Optimizer

    wish = Optimizer(kind=name, beta1=0.8, beta2=0.9, epsilon=1e-6, momentum=0.7, weight_decay=0.3)
    assert optim.rule(wish) == {"adamw": AdamW(0.8, 0.9, 1e-6, 0.3), "sgd": SGD(0.7, 0.3)}[name]
