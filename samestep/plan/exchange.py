"""How long the GPUs of a run exchange, and how much of that computing does not hide. Pure arithmetic, seconds.

Rings (Patarasu and Yuan 2009): an all-reduce of n bytes among W sends 2 (W - 1) / W n through the slowest link.
"""

import math

from samestep.plan.constants import Constants
from samestep.plan.devices import Device
from samestep.plan.facts import Facts
from samestep.plan.memory import trained
from samestep.plan.training import Training

LATENCY = 15e-6  # seconds of one step of a collective between GPUs of a host
HOP = 25e-6  # between hosts
BUCKET = 25e6  # bytes of gradients that torch's DDP sends at a time
SHARED = 0.5  # of a link that several GPUs reach through one switch of the host


def hosts(training: Training) -> int:
    return max(1, math.ceil(training.gpus / training.host))


def rate(device: Device, training: Training, members: int, span: int, constants: Constants) -> float:
    """Bytes a second that pass through a ring of `members` GPUs that stand among `span` neighbouring ones.

    Where the rings of several tensor-parallel ranks leave a host at once they share its network.
    """
    crowded = 1.0 if device.switched or members <= 2 else SHARED if device.link < 60e9 else 0.8
    inside = device.link * constants.linked * crowded
    if span <= training.host:
        return inside
    beside = max(1, min(training.host, span // max(1, members)))
    return min(inside, training.network * constants.routed / beside)


def reduced(device: Device, training: Training, size: float, constants: Constants) -> float:
    """Seconds of an all-reduce of `size` bytes between the replicas."""
    members = training.replicas
    if members == 1:
        return 0.0
    through = rate(device, training, members, training.gpus // training.pipeline, constants)
    return 2 * (members - 1) / members * size / through + 2 * _latency(training, size)


def gathered(device: Device, training: Training, size: float, constants: Constants) -> float:
    """Seconds in which `size` bytes become whole from their shards, or are added up to shards."""
    members = training.shards
    if members == 1:
        return 0.0
    through = rate(device, training, members, members * training.tensor, constants)
    return (members - 1) / members * size / through + _latency(training, size)


def _latency(training: Training, size: float) -> float:
    steps = math.log2(max(2, training.replicas))
    each = HOP if training.gpus > training.host else LATENCY
    return each * steps * max(1, size / BUCKET / 8)


def micro_batch(device: Device, facts: Facts, training: Training, constants: Constants) -> tuple[float, float]:
    """Seconds of what each micro-batch exchanges under full sharding, in forward and in backward."""
    if training.stage < 3:
        return 0.0, 0.0
    here = 1 / (training.tensor * training.pipeline)
    weights = facts.parameters * here * (training.frozen if training.rank else training.width)
    gather = gathered(device, training, weights, constants)
    gradients = trained(facts, training) * here * training.gradient
    return gather, gather + gathered(device, training, gradients, constants)


def step(device: Device, facts: Facts, training: Training, constants: Constants) -> float:
    """Seconds of what is exchanged once a step: gradients, and the weights that sharded optimizers have updated."""
    here = trained(facts, training) / (training.tensor * training.pipeline)
    if training.stage < 3:
        return reduced(device, training, here * training.gradient, constants)
    copies = training.replicas // training.shards
    if copies == 1:
        return 0.0
    through = rate(device, training, copies, training.gpus, constants)
    return 2 * (copies - 1) / copies * here * training.gradient / training.shards / through


def tensor(device: Device, facts: Facts, training: Training, constants: Constants) -> float:
    """Seconds of one layer's and micro-batch's exchanges between tensor-parallel GPUs: four all-reduces of the hidden
    state, two more where forward is computed again (Shoeybi et al., arXiv 1909.08053)."""
    if training.tensor == 1:
        return 0.0
    size = training.micro_batch * training.context * facts.width * training.width
    times = 6 if training.again else 4
    members = training.tensor
    through = rate(device, training, members, members, constants)
    each = LATENCY if members <= training.host else HOP
    return times * (2 * (members - 1) / members * size / through + 2 * each * math.log2(members))


def pipeline(device: Device, facts: Facts, training: Training, constants: Constants) -> float:
    """Seconds of one micro-batch's hidden states and gradients between two stages."""
    if training.pipeline == 1:
        return 0.0
    size = training.micro_batch * training.context * facts.width * training.width / training.tensor
    across = training.gpus > training.host
    through = training.network * constants.routed / training.host if across else device.link * constants.linked
    return 2 * training.chunks * (size / through + (HOP if across else LATENCY))
