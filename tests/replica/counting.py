"""A state whose numbers can be told apart: weights and moments count up over the whole model."""

import torch

from samestep.model.optim import AdamW
from samestep.replica.state import State
from samestep.sync.exact import share


def counting(parameters, plan, rank, size, copies, seed=0):
    """Of one replica, from `seed` on; each number stands once in the weights."""
    found = State(parameters, plan, AdamW())
    found.adopt(share(plan, 8, rank, size, copies))
    everything = torch.arange(plan.total) + float(seed)
    found.weights.copy_(everything)
    for region, moments in found.moments.items():
        for number, moment in enumerate(moments):
            moment.copy_(everything[region.start : region.stop] * (2 + number))
    return found
