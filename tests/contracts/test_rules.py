"""The laws of every optimizer rule."""

import pytest
import torch

from samestep.model import optim
from samestep.model.optim import SGD, AdamW

RULES = {"adamw": AdamW(0.9, 0.95, 1e-8, 0.1), "sgd": SGD(0.9, 0.1)}
TORCH = {
    "adamw": lambda p: torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD([p], lr=0.01, momentum=0.9, weight_decay=0.1),
}
SIZES = (4096, 1003, 16)


@pytest.fixture(params=RULES)
def name(request):
    return request.param


def gradients(steps=5):
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(size, generator=generator) for size in SIZES] for _ in range(steps)]


def state(rule):
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(size, generator=generator) for size in SIZES]
    return weights, [[torch.zeros(size) for size in SIZES] for _ in range(rule.moments)]


def test_it_gives_what_torch_gives(name):
    rule = RULES[name]
    weights, kept = state(rule)
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizers = [TORCH[name](p) for p in parameters]
    for count, found in enumerate(gradients(), 1):
        rule.update(weights, found, kept, [count] * 3, 0.01, True)
        for parameter, gradient, optimizer, weight in zip(parameters, found, optimizers, weights, strict=True):
            parameter.grad = gradient
            optimizer.step()
            torch.testing.assert_close(weight, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_pieces_updated_together_or_alone_have_the_same_bits(name):
    """So it does not matter which pieces an owner holds."""
    rule = RULES[name]
    (together, kept), (alone, kept_alone) = state(rule), state(rule)
    for count, found in enumerate(gradients(), 1):
        rule.update(together, found, kept, [count] * 3, 0.01, True)
        for i in range(3):
            rule.update([alone[i]], [found[i]], [[k[i]] for k in kept_alone], [count], 0.01, True)
    assert all(map(torch.equal, together, alone))
    assert all(torch.equal(a, b) for m, n in zip(kept, kept_alone, strict=True) for a, b in zip(m, n, strict=True))


def test_each_piece_follows_its_own_count(name):
    """A parameter that got its first gradient later is at its first update."""
    rule = RULES[name]
    (mixed, kept), (first, kept_first) = state(rule), state(rule)
    (found,) = gradients(1)
    rule.update(mixed, found, kept, [7, 1, 7], 0.01, True)
    rule.update(first, found, kept_first, [1, 1, 1], 0.01, True)
    assert torch.equal(mixed[1], first[1])


def test_weight_decay_acts_only_where_it_applies(name):
    rule = RULES[name]
    (decayed, kept), (left_alone, kept_alone) = state(rule), state(rule)
    nothing = [torch.zeros(size) for size in SIZES]
    rule.update(decayed, nothing, kept, [1] * 3, 0.01, True)
    rule.update(left_alone, nothing, kept_alone, [1] * 3, 0.01, False)
    assert all(map(torch.equal, left_alone, state(rule)[0]))
    assert all((a.abs() <= b.abs()).all() and not torch.equal(a, b) for a, b in zip(decayed, left_alone, strict=True))


def test_the_recipe_names_it(name):
    from samestep.recipe.schema import Optimizer

    wish = Optimizer(kind=name, beta1=0.8, beta2=0.9, epsilon=1e-6, momentum=0.7, weight_decay=0.3)
    assert optim.rule(wish) == {"adamw": AdamW(0.8, 0.9, 1e-6, 0.3), "sgd": SGD(0.7, 0.3)}[name]


def test_vectors_do_not_decay():
    assert optim.decays(torch.zeros(3, 3)) and not optim.decays(torch.zeros(3))
