"""Law 4: the bytes that are predicted are the bytes that the wire counts."""

import copy
import itertools
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from samestep.model.optim import AdamW
from samestep.plan import traffic
from samestep.plan.traffic import Division
from samestep.recipe.schema import Diloco
from samestep.replica.islands import Islands
from samestep.replica.step import Step
from samestep.sync.legs import Legs
from samestep.sync.slices import layout
from samestep.wire import loopback
from samestep.wire.formats import EXACT, Formats
from samestep.wire.torch_backend import TorchBackend

LANES = 8
torch.manual_seed(0)
MODULE = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 40))
PLAN = layout([p.numel() for p in MODULE.parameters()], LANES, bucket=2048)
FORMATS = [Formats(name, name) for name in ("float32", "bfloat16", "int8", "int4")]
FORMATS += [Formats("float32", "int4"), Formats("int8", "float32"), Formats("int4", "bfloat16")]


def backward(step, module):
    for lane in step.lanes:
        step.backward(module(torch.full((5, 6), 1.0 + lane)).square().sum() / 400)


def sent_in_steps(wire, step, module, steps):
    """Bytes in each step."""
    sent = [wire.bytes_sent]
    while step.number < steps:
        backward(step, module)
        step.reduce()
        step.propose(1e-2)
        step.commit()
        sent.append(wire.bytes_sent)
    return [after - before for before, after in itertools.pairwise(sent)]


@pytest.mark.parametrize("formats", FORMATS, ids="-".join)
@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 5, 8])
def test_of_exact_steps(formats, replicas):
    def replica(wire):
        mine = copy.deepcopy(MODULE)
        return sent_in_steps(wire, Step(mine, wire, AdamW(), lanes=LANES, formats=formats, bucket=2048), mine, 2)

    division = Division(PLAN, LANES, replicas, 1, formats)
    assert loopback.run(replicas, replica) == [[traffic.step(division, rank)] * 2 for rank in range(replicas)]


@pytest.mark.parametrize("formats", [EXACT, Formats("float32", "int8")], ids="-".join)
@pytest.mark.parametrize("copies", [2, 8])
@pytest.mark.parametrize("replicas", [2, 3, 5])
def test_of_steps_with_copies_of_which_one_lane_is_computed_twice(formats, copies, replicas):
    def replica(wire):
        mine = copy.deepcopy(MODULE)
        settings = {"copies": copies, "recompute": 2, "formats": formats, "bucket": 2048}
        return sent_in_steps(wire, Step(mine, wire, AdamW(), lanes=LANES, **settings), mine, 2)

    division = Division(PLAN, LANES, replicas, copies, formats)
    for rank, found in enumerate(loopback.run(replicas, replica)):
        assert found == [traffic.step(division, rank, compared=True), traffic.step(division, rank)]


@pytest.mark.parametrize("formats", [EXACT, Formats("int8", "int8")], ids="-".join)
@pytest.mark.parametrize("copies", [1, 2, 8])
@pytest.mark.parametrize("hosts", [(0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 2, 2), (0, 1, 2)])
def test_of_steps_on_several_hosts(formats, copies, hosts):
    def replica(wire):
        mine = copy.deepcopy(MODULE)
        settings = {"lanes": LANES, "copies": copies, "formats": formats, "bucket": 2048}
        return sent_in_steps(wire, Step(mine, wire, AdamW(), **settings), mine, 2)

    division = Division(PLAN, LANES, len(hosts), copies, formats, hosts)
    for rank, found in enumerate(loopback.run(len(hosts), replica, hosts=hosts)):
        assert found == [traffic.step(division, rank)] * 2


def test_on_one_host_nothing_goes_to_others():
    assert (
        traffic.between(Division(PLAN, LANES, 3), 0) == traffic.between(Division(PLAN, LANES, 2, hosts=(0, 0)), 0) == 0
    )
    apart = Division(PLAN, LANES, 3, hosts=(0, 1, 2))
    assert traffic.between(apart, 0) == traffic.step(apart, 0)


@pytest.mark.parametrize("formats", FORMATS, ids="-".join)
@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
@pytest.mark.parametrize(("fragments", "overlap", "together"), [(1, 0, 0), (2, 0, 3), (3, 1, 2), (12, 0, 0)])
def test_of_the_legs_of_islands(formats, replicas, fragments, overlap, together):
    steps, terms = 29, Diloco(islands=5, every=12, fragments=fragments, overlap=overlap, together=together)
    plan = layout([p.numel() for p in MODULE.parameters()], 5, bucket=2048)
    legs = Legs(12, fragments, overlap, steps, together)

    def replica(wire):
        mine, given = copy.deepcopy(MODULE), {"steps": steps, "formats": formats, "bucket": 2048}
        return sent_in_steps(wire, Islands(mine, wire, AdamW(), terms, lanes=10, **given), mine, steps)

    division = Division(plan, 5, replicas, 1, formats)
    for rank, found in enumerate(loopback.run(replicas, replica)):
        number = 0
        while number < steps:
            wanted = traffic.leg(division, rank, legs, fragments, 10, number)
            there = found[number : number + len(wanted)]
            assert (sum(there) == sum(wanted)) if overlap else (there == wanted)
            number += len(wanted)


@pytest.mark.parametrize("overlap", [0, 1])
def test_of_the_legs_of_islands_on_several_hosts(overlap):
    steps, hosts = 24, (0, 0, 1, 1)
    terms, legs = Diloco(islands=5, every=12, fragments=3, overlap=overlap), Legs(12, 3, overlap, steps)
    plan = layout([p.numel() for p in MODULE.parameters()], 5, bucket=2048)

    def replica(wire):
        mine = copy.deepcopy(MODULE)
        islands = Islands(mine, wire, AdamW(), terms, lanes=10, steps=steps, bucket=2048)
        return sent_in_steps(wire, islands, mine, steps), torch.cat([p.flatten() for p in mine.parameters()]).tolist()

    division, alone = Division(plan, 5, 4, hosts=hosts), loopback.run(1, replica)[0]
    for rank, (found, weights) in enumerate(loopback.run(4, replica, hosts=hosts)):
        number, wanted = 0, 0
        while number < steps:
            there = traffic.leg(division, rank, legs, 3, 10, number)
            number, wanted = number + len(there), wanted + sum(there)
        assert sum(found) == wanted and weights == alone[1]


def test_of_fast_steps(tmp_path):
    found, both = {}, threading.Barrier(2)

    def replica(rank):
        wire, mine = TorchBackend(rank, 2, tmp_path / "meeting"), copy.deepcopy(MODULE)
        found[rank] = sent_in_steps(wire, Step(mine, wire, AdamW(), lanes=LANES, strategy="fast", bucket=2048), mine, 2)
        both.wait(30)
        wire.close()

    threads = [threading.Thread(target=replica, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys((0, 1), [traffic.fast(Division(PLAN, LANES, 2))] * 2)


def test_few_bits_are_few_bytes():
    """Of a model of 13.8 million weights on 4 replicas."""
    plan = layout([13_800_000], LANES)
    exact, *others = (traffic.step(Division(plan, LANES, 4, 1, formats), 0) for formats in FORMATS[:4])
    assert [round(exact / each, 1) for each in others] == [2.0, 2.6, 5.3]


def test_no_torch_is_needed():
    code = "import sys, samestep.plan.traffic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
