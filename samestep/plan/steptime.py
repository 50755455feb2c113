"""How long a step takes on GPUs, by what it is spent on. Pure arithmetic, seconds."""

import math

from samestep.plan import exchange, kernels, memory
from samestep.plan.constants import Constants, constants
from samestep.plan.devices import Device
from samestep.plan.facts import Facts
from samestep.plan.training import Training

FULL = 0.92  # of memory from which torch's allocator begins to give blocks back and ask for them again
OFFLOADED = 12e9  # bytes a second of one GPU's way to the host's memory, both ways together, PCIe 4 shared by two
UPDATED = 25e9  # bytes a second of a GPU's share of the host's memory, in which its processors update

Parts = dict[str, float]


def step(device: Device, facts: Facts, training: Training, known: Constants | None = None) -> Parts:
    """Seconds of one step by kind: matrices, attention, elementwise, loss, recompute, launches, optimizer,
    accumulation, tensor, exchange, bubble, host, pressure.
    """
    numbers = known or constants()
    micro = _micro_batch(device, facts, training, numbers)
    often = training.accumulate
    parts = {name: often * seconds for name, seconds in micro.items()}
    once = sum(micro.values())
    if training.pipeline > 1:
        parts["bubble"] = (training.pipeline - 1) / training.chunks * once
    mine = memory.trained(facts, training) / (training.tensor * training.pipeline)
    owned = mine / (training.shards if training.stage >= 1 else 1)
    parts["optimizer"] = kernels.optimizer(device, owned, training, numbers) + _offloaded(owned, training)
    parts["accumulation"] = _accumulated(device, facts, mine, training, numbers)
    parts["exchange"] = _exposed(device, facts, training, micro, numbers)
    spent = sum(parts.values())
    parts["host"] = numbers.step + spent * numbers.jitter * math.log2(max(1, exchange.hosts(training)))
    parts["pressure"] = spent * numbers.pressed * _pressure(device, facts, training)
    return parts


def tokens_per_second(device: Device, facts: Facts, training: Training, known: Constants | None = None) -> float:
    """Of all GPUs."""
    return training.tokens / sum(step(device, facts, training, known).values())


def flops(facts: Facts, context: int) -> float:
    """Of a token, forward and backward, nothing computed again: 6 for each parameter in a matrix product, 12 a layer,
    position and width of attention, which is counted whole though a causal one needs half (PaLM, arXiv 2204.02311,
    appendix B)."""
    head = facts.predicted * facts.vocabulary * facts.width
    return 6.0 * (facts.layers * facts.layer + head) + 12.0 * facts.layers * facts.queries * context


def utilisation(device: Device, facts: Facts, training: Training, speed: float) -> float:
    """Model FLOP utilisation at `speed` tokens a second: of the advertised dense peak of the products' dtype."""
    peak = device.peak[device.computes(training.product)] * training.gpus
    return speed * flops(facts, training.context) / peak


def _micro_batch(device: Device, facts: Facts, training: Training, numbers: Constants) -> Parts:
    layers = facts.layers / training.pipeline
    one = kernels.layer(device, facts, training, numbers)
    forward, backward = one.forward, one.backward
    parts = {name: layers * (forward[name] + backward[name]) for name in forward}
    parts["loss"] = kernels.head(device, facts, training, numbers)
    selected = forward["attention"] if training.checkpointing == "selective" else 0.0
    parts["recompute"] = layers * (sum(forward.values()) if training.again else selected)
    waits = [
        max(0.0, launch - sum(side.values())) for launch, side in zip(one.launches, (forward, backward), strict=True)
    ]
    repeated = waits[0] if training.again else 0.0
    parts["launches"] = layers * (sum(waits) + repeated)
    parts["tensor"] = layers * exchange.tensor(device, facts, training, numbers)
    parts["tensor"] += exchange.pipeline(device, facts, training, numbers)
    return parts


def _accumulated(device: Device, facts: Facts, mine: float, training: Training, numbers: Constants) -> float:
    """Gradients are added up in every micro-batch, and weights cast for it."""
    through = device.bandwidth * numbers.streamed
    moved = 3 * training.gradient * mine
    if training.mixed and training.width < training.weight:
        whole = facts.parameters / (training.tensor * training.pipeline)
        moved += (training.weight + training.width) * whole / (training.shards if training.stage >= 3 else 1)
    return training.accumulate * moved / through


def _exposed(device: Device, facts: Facts, training: Training, micro: Parts, numbers: Constants) -> float:
    """What of the exchange computing does not hide, and what hiding it costs."""
    computed = sum(micro.values()) - micro["tensor"]
    first, second = exchange.micro_batch(device, facts, training, numbers)
    layers = max(1, facts.layers // training.pipeline)
    forward, backward = computed / 3, 2 * computed / 3
    if training.again:
        forward, backward = computed / 4, 3 * computed / 4
    often = _shown(first, forward, layers, numbers) + _shown(second, backward, layers, numbers)
    once = exchange.step(device, facts, training, numbers)
    return training.accumulate * often + _shown(once, backward, layers, numbers)


def _shown(sent: float, behind: float, parts: int, numbers: Constants) -> float:
    """The first or last of the parts has nothing to hide behind."""
    alone = sent / parts
    hidden = min(sent - alone, numbers.hidden * behind)
    return sent - hidden + numbers.contended * hidden


def _offloaded(owned: float, training: Training) -> float:
    """Gradients go to the host's memory and weights come back, and the host's processors update."""
    moved = (training.gradient + training.weight) / OFFLOADED + training.passes / UPDATED
    return owned * moved if training.offload else 0.0


def _pressure(device: Device, facts: Facts, training: Training) -> float:
    full = memory.needed(facts, training) / device.memory
    return min(1.0, max(0.0, (full - FULL) / (1 - FULL)))
