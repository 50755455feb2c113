"""The learning rate of each step."""

import math
from collections.abc import Callable

from samestep.recipe.schema import Optimizer

# How much is left of the way down to the final rate when the share `done` of the steps is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,  # Loshchilov and Hutter, arXiv 1608.03983, section 3
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def learning_rate(step: int, steps: int, optimizer: Optimizer) -> float:
    """The rate of `step`, 0 <= step < `steps`.

    Up by equal parts over the first `warmup` steps, the last of which has the full rate, as has the one after it;
    then down by the schedule, so that the last step has the share `final` (`constant` stays at the full rate).
    """
    if step < optimizer.warmup:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup
    done = (step - optimizer.warmup) / max(1, steps - 1 - optimizer.warmup)
    left = SCHEDULES[optimizer.schedule](done)
    return optimizer.learning_rate * (left + (1 - left) * optimizer.final)
