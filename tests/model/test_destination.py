"""A gradient is written where it is wanted, and is the same number wherever that is."""

import pytest
import torch
import torch.nn.functional as F

from samestep.model.destination import offer, take
from samestep.model.layers import Linear, gated
from samestep.sync import accumulate
from samestep.sync.accumulate import Accumulator
from samestep.sync.share import turns
from samestep.sync.slices import layout


@pytest.fixture(autouse=True)
def numbers():
    torch.manual_seed(5)


def loss_of(layer, times=1):
    hidden = torch.ones(3, layer.weight.shape[1]) * torch.arange(1, 4)[:, None]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for _ in range(times):
            hidden = layer(hidden)
    return hidden.float().square().sum()


def gradient(layer, memory=None, times=1):
    if memory is not None:
        offer(layer.weight, memory.view(layer.weight.shape))  # a view that nobody else keeps
    loss_of(layer, times).backward()
    found, layer.weight.grad = layer.weight.grad, None
    return found


def test_it_lies_where_it_was_wanted():
    layer, wanted = Linear(8, 8), torch.zeros(64)
    plain = gradient(layer)
    there = gradient(layer, wanted)
    assert there.data_ptr() == wanted.data_ptr() and torch.equal(there, plain) and plain.abs().max() > 0


def test_that_of_a_gated_product_too():
    down, wanted = Linear(8, 4), torch.zeros(32)
    offer(down.weight, wanted.view(4, 8))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        halves = torch.randn(2, 3, 8, requires_grad=True).bfloat16()
        gated(halves[0], halves[1], down).float().sum().backward()
    assert down.weight.grad.data_ptr() == wanted.data_ptr() and wanted.abs().max() > 0


def test_a_parameter_that_is_used_twice_gets_the_sum():
    layer, wanted = Linear(8, 8), torch.zeros(64)
    assert torch.equal(gradient(layer, wanted, times=2), gradient(layer, times=2))


def test_a_place_is_taken_once_and_can_be_withdrawn():
    weight = torch.nn.Parameter(torch.ones(2))
    offer(weight, torch.zeros(2))
    assert take(weight) is not None and take(weight) is None
    offer(weight, torch.zeros(2))
    offer(weight, None)
    assert take(weight) is None


@pytest.fixture
def landed(monkeypatch):
    """Of each gradient that a buffer took, in order, whether it was there already."""
    seen, put = [], accumulate._put

    def watched(place, found):
        seen.append(found.data_ptr() == place.data_ptr())
        put(place, found)

    monkeypatch.setattr(accumulate, "_put", watched)
    return seen


@pytest.mark.parametrize(
    ("parts", "micros", "written"),
    [
        ([[0]], 1, [True]),
        ([[0]], 3, [True]),
        ([[0, 1]], 1, [True]),
        ([[0, 1]], 2, [True, True]),
        ([[0], [0]], 1, [True, True]),
    ],
)
def test_the_first_gradient_of_a_lane_is_written_where_it_is_added_up(landed, parts, micros, written):
    """parts: of each partial sum, of each lane, with how many of the sums above it is merged at once."""
    layer, lanes = Linear(8, 8), sum(map(len, parts))
    sums = Accumulator(
        [layer.weight],
        layout([64], lanes),
        turns(parts),
        micros,
        lambda bucket: None,
        lambda count, like: torch.zeros(count),
    )
    for _ in range(lanes * micros):
        loss_of(layer).backward()
        sums.micro_batch_done()
    sums.close()
    assert landed == written and take(layer.weight) is None
    total = sum(buffer[:64].view(8, 8) for buffer in sums.buffers[: len(parts)])
    assert torch.allclose(total, gradient(layer) * lanes * micros)


def test_what_comes_after_the_last_lane_is_written_nowhere():
    layer = Linear(8, 8)
    sums = Accumulator(
        [layer.weight], layout([64], 1), turns([[0]]), 1, lambda bucket: None, lambda count, like: torch.zeros(count)
    )
    loss_of(layer).backward()
    sums.micro_batch_done()
    before = sums.buffers[0].clone()
    (loss_of(layer) * 3).backward()
    assert torch.equal(sums.buffers[0], before) and before.abs().max() > 0
    sums.close()


def test_a_layer_that_knows_nothing_of_it_is_copied_as_ever(landed):
    layer = torch.nn.Linear(8, 8, bias=False)
    sums = Accumulator(
        [layer.weight], layout([64], 1), turns([[0]]), 1, lambda bucket: None, lambda count, like: torch.zeros(count)
    )
    F.linear(torch.ones(3, 8), layer.weight).square().sum().backward()
    sums.micro_batch_done()
    assert landed == [False] and take(layer.weight) is None and sums.buffers[0].abs().max() > 0
    sums.close()
