"""A plan corrected by one run that was seen on the same machines, as after a pilot. Pure arithmetic."""

import math

from samestep.plan import steptime
from samestep.plan.constants import Constants
from samestep.plan.devices import Device
from samestep.plan.facts import Facts
from samestep.plan.training import Training

APART = ("exchange", "tensor", "host")  # what a pilot of other size tells nothing of
MOST = 4.0  # times that a GPU is faster or slower than thought; beyond it the pilot is another program


# The share, in logarithms, of what one run shows that holds for others too: the rest is that run's luck (shrinkage:
# Efron and Morris 1975). Of the published runs 0.4 to 0.6 err least.
TRUST = 0.5


def slowness(device: Device, facts: Facts, training: Training, seconds: float, known: Constants | None = None) -> float:
    """How many times longer than predicted the GPU's own work will take, after a step took `seconds`."""
    parts = steptime.step(device, facts, training, known)
    apart = sum(parts[name] for name in APART)
    computed = sum(parts.values()) - apart
    seen = min(MOST, max(1 / MOST, (seconds - apart) / computed))
    return math.exp(TRUST * math.log(seen))


def seconds(device: Device, facts: Facts, training: Training, slower: float, known: Constants | None = None) -> float:
    """Of a step whose own work takes `slower` times what is predicted."""
    parts = steptime.step(device, facts, training, known)
    apart = sum(parts[name] for name in APART)
    return slower * (sum(parts.values()) - apart) + apart
