"""The step in plain PyTorch: every micro-batch by itself, gradients added in the tree's order, torch's optimizer.

Written apart from samestep, whose bits it checks (law 2).
"""

import torch


def tree_sum(values):
    while len(values) > 1:
        pairs = [values[i] + values[i + 1] if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
        values = pairs
    return values[0]


def lane_gradient(parameters, losses):
    """The gradients of one lane's micro-batch losses, added in order; None where no micro-batch gives one."""
    sums = [None] * len(parameters)
    for loss in losses:
        gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
        sums = [g if s is None else s if g is None else s + g for s, g in zip(sums, gradients, strict=True)]
    return sums


def step_gradient(parameters, lanes):
    """`lanes[l]` are the micro-batch losses (functions of nothing) of lane l, already divided by the targets."""
    rows = [lane_gradient(parameters, losses) for losses in lanes]
    result = []
    for index, parameter in enumerate(parameters):
        column = [row[index] for row in rows]
        missing = all(g is None for g in column)
        result.append(None if missing else tree_sum([torch.zeros_like(parameter) if g is None else g for g in column]))
    return result
