"""Every strategy through the host's memory: copies that come late, differently on each replica, change no bit."""

import copy
import random

import pytest
import torch
from torch import nn

from samestep.model.optim import AdamW
from samestep.replica.step import Step
from samestep.wire import loopback
from samestep.wire.formats import Formats
from samestep.wire.side import Side
from samestep.wire.staged import Staged


class Lagging(Side):
    """Copies that are there only after some looks, or once somebody waits."""

    def __init__(self, seed):
        super().__init__(torch.device("cpu"))
        self._random = random.Random(seed)

    def copy(self, pairs, after):
        super().copy(pairs, after)
        return Looks(self._random.randrange(4))


class Looks:
    def __init__(self, left):
        self.left = left

    def reached(self):
        self.left -= 1
        return self.left < 0

    def wait(self):
        self.left = 0

    def hold(self):
        pass


def trained(replicas, staged, strategy="exact", wire="float32", hosts=None, copies=1):
    """The weights that each replica has after three steps."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 40))
    inputs = torch.randn(3, 8, 5, 6, generator=torch.Generator().manual_seed(3))

    def replica(inner):
        transport = Staged(inner, Lagging(inner.rank)) if staged else inner
        mine = copy.deepcopy(module)
        terms = {"lanes": 8, "clip": 0.5, "strategy": strategy, "formats": Formats(wire, wire), "scrub": 1}
        step = Step(mine, transport, AdamW(), copies=copies, bucket=1024, **terms)
        step.seal()
        for n in range(3):
            for lane in step.lanes:
                step.backward(mine(inputs[n, lane]).square().sum() / 40)
            step.update(1e-2)
        return torch.cat([p.detach().flatten() for p in mine.parameters()]), transport.bytes_sent

    return loopback.run(replicas, replica, hosts=hosts)


@pytest.mark.parametrize("wire", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_bits_and_bytes_are_those_of_the_transport_itself(wire, replicas):
    plain, staged = trained(replicas, False, wire=wire), trained(replicas, True, wire=wire)
    assert all(torch.equal(a, b) and sent == also for (a, sent), (b, also) in zip(plain, staged, strict=True))


@pytest.mark.parametrize("copies", [2, 3])
def test_mirrors_get_what_they_get_otherwise(copies):
    plain, staged = trained(3, False, copies=copies), trained(3, True, copies=copies)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(plain, staged, strict=True))


def test_relays_between_hosts_too():
    hosts = [0, 0, 1, 1]
    plain, staged = trained(4, False, hosts=hosts), trained(4, True, hosts=hosts)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(plain, staged, strict=True))


def test_the_backend_s_own_sums_too():
    plain, staged = trained(2, False, "fast"), trained(2, True, "fast")
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(plain, staged, strict=True))
