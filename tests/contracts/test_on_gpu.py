"""The laws of strategies and formats where tensors lie on a CUDA device: replicas are threads that share it."""

import copy

import pytest
import torch
from torch import nn

from samestep.model.optim import AdamW
from samestep.replica.step import Step
from samestep.wire import loopback
from samestep.wire.formats import Formats

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device here: exchanges of CUDA tensors not tried"
    ),
]


def trained(replicas, strategy="exact", wire="float32", steps=3, device="cuda"):
    """The weights that each replica has in the end."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 40)).to(device)
    inputs = torch.randn(steps, 8, 5, 6, generator=torch.Generator().manual_seed(3)).to(device)

    def replica(transport):
        mine = copy.deepcopy(module)
        step = Step(
            mine, transport, AdamW(), lanes=8, clip=0.5, strategy=strategy, formats=Formats(wire, wire), scrub=1
        )
        step.seal()
        for n in range(steps):
            for lane in step.lanes:
                step.backward(mine(inputs[n, lane]).square().sum() / 40)
            step.update(1e-2)
        return torch.cat([p.detach().flatten() for p in mine.parameters()])

    return loopback.run(replicas, replica)


@pytest.mark.parametrize("wire", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_any_number_of_replicas_has_the_bits_of_one(wire, replicas):
    (alone,) = trained(1, wire=wire)
    assert all(torch.equal(each, alone) for each in trained(replicas, wire=wire))


@pytest.mark.parametrize("replicas", [2, 8])
def test_fast_is_close_to_exact(replicas):
    (alone,) = trained(1)
    for each in trained(replicas, strategy="fast"):
        assert (each - alone).norm() <= 1e-3 * alone.norm()


def test_the_weights_are_nearly_those_of_the_processor():
    (there,), (here,) = trained(1), trained(1, device="cpu")
    assert (there.cpu() - here).norm() <= 1e-3 * here.norm()
