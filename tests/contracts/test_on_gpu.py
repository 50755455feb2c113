"""The laws of strategies and formats where tensors lie on a CUDA device: replicas are threads that share it."""

import copy
import os

import pytest
import torch
from torch import nn

from samestep.data.feed import MicroBatch
from samestep.model.optim import AdamW
from samestep.replica.step import Step
from samestep.wire import loopback
from samestep.wire.formats import Formats
from samestep.wire.segments import Segments
from samestep.wire.side import Side
from samestep.wire.staged import Staged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device here: exchanges of CUDA tensors not tried"
    ),
]


def trained(replicas, strategy="exact", wire="float32", steps=3, device="cuda", staged=False):
    """The weights that each replica has in the end."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 40)).to(device)
    inputs = torch.randn(steps, 8, 5, 6, generator=torch.Generator().manual_seed(3)).to(device)

    def replica(transport):
        transport = Staged(transport, Side(torch.device(device, 0))) if staged else transport
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


@pytest.mark.parametrize("wire", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("replicas", [2, 3])
def test_what_goes_through_the_host_has_these_bits_too(wire, replicas):
    (alone,) = trained(1, wire=wire)
    assert all(torch.equal(each, alone) for each in trained(replicas, wire=wire, staged=True))


def test_fused_optimizers_round_alike_wherever_slices_are_cut():
    """On processors they do so only at places that follow the recipe; see sync/slices.py."""
    numbers = torch.Generator().manual_seed(1)
    whole = [torch.rand(300_016, generator=numbers).to("cuda") for _ in range(4)]
    for cut in (16, 64, 4096, 65_536 + 16):
        parts = [tensor.clone() for tensor in whole]
        AdamW().update([parts[0]], [parts[1]], [[parts[2]], [parts[3]]], [3], 1e-2, True)
        pieces = [list(torch.split(tensor.clone(), cut)) for tensor in whole]
        AdamW().update(pieces[0], pieces[1], [pieces[2], pieces[3]], [3] * len(pieces[0]), 1e-2, True)
        assert all(torch.equal(torch.cat(p), part) for p, part in zip(pieces, parts, strict=True)), cut


def test_copies_to_the_host_are_those_of_the_moment_that_was_asked_for():
    side = Side(torch.device("cuda", 0))
    values, room = torch.zeros(1 << 24, device="cuda"), side.room(4 << 24).view(torch.float32)
    values.fill_(1.0)
    copied = side.copy([(room, values)], side.mark())
    copied.hold()
    values.fill_(2.0)
    copied.wait()
    assert room.unique().tolist() == [1.0]
    side.close()


def test_shared_memory_is_pinned_and_let_go():
    side, memory = Side(torch.device("cuda", 0)), os.memfd_create("test")
    segments = Segments(memory, 0)
    shown = segments.zeros(1 << 20, torch.uint8)
    assert side.pin(shown) and side.pin(shown) and shown.is_pinned()
    side.close()
    assert not shown.is_pinned()
    segments.close()


def test_a_micro_batch_is_brought_to_the_device():
    batch = MicroBatch(torch.arange(8).view(2, 4), torch.ones(2, 4, dtype=torch.int64)).to(torch.device("cuda", 0))
    assert batch.tokens.device.type == "cuda" and batch.tokens.cpu().flatten().tolist() == list(range(8))
    assert batch.positions is None and batch.to(torch.device("cuda")) is batch


def test_the_weights_are_nearly_those_of_the_processor():
    (there,), (here,) = trained(1), trained(1, device="cpu")
    assert (there.cpu() - here).norm() <= 1e-3 * here.norm()
