"""What a pod of one replica asks for: processors, memory, and time to end. Pure; estimates from above."""

import math
import re

from samestep.errors import RecipeError
from samestep.recipe.schema import Recipe

UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

PROGRAM = 600 * 2**20  # bytes: Python and torch, before there is a model
BYTES = (
    34  # of activations, a token, layer and unit of width in 16 bits: Korthikanti et al., arXiv 2205.05198, section 4.1
)
POSITIONS = 256  # whose logits the loss holds at a time, see model/losses.py
MARGIN = 1.25
DISK = 50e6  # bytes a second that a replica writes at least, to a volume that others write to as well
WAY_OUT = 30  # seconds for the step under way, and to end


def processors(recipe: Recipe) -> str:
    """One beside those that compute: it reads, saves and watches."""
    return str(recipe.compute.threads + 1)


def memory(recipe: Recipe, weights: int) -> int:
    """Bytes that a replica of the built-in model takes at most. weights: how many it has.

    All moments are counted, whoever holds them: where few replicas are left each holds more.
    """
    lanes = -(-recipe.lanes // recipe.run.replicas)
    gradients = 1 + lanes.bit_length()  # the one that is filled, and partial sums of lanes
    moments = {"adamw": 2, "sgd": 1}[recipe.optimizer.kind] + (recipe.sync.told != "float32")
    state = 4 * weights * (1 + gradients + moments)
    return round(PROGRAM + MARGIN * (state + _work(recipe)))


def _work(recipe: Recipe) -> float:
    """Bytes of activations and logits of a micro-batch."""
    model = recipe.model
    tokens = recipe.batch.micro_batch * recipe.data.context
    size = 1 if model.dtype == "bfloat16" else 2
    layers = model.layers if recipe.compute.checkpointing == "none" else 1
    return tokens * model.width * (layers * BYTES * size + 4 * model.layers) + 2 * 4 * POSITIONS * model.vocabulary


def grace(save_seconds: float) -> int:
    """Seconds between SIGTERM and SIGKILL: a save is given twice what it was seen to take, as all save at once."""
    return WAY_OUT + math.ceil(2 * save_seconds)


def saving(memory: int) -> float:
    """Seconds of a save that nobody has measured: a replica's part of a checkpoint is no larger than its memory."""
    return memory / DISK


def quantity(text: str, option: str) -> int:
    """Bytes of a quantity as Kubernetes writes it, such as 8Gi. RecipeError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kMGT]|[KMGT]i)?", text)
    if found is None or float(found[1]) == 0:
        raise RecipeError(f"{option} is {text!r}, but must be an amount such as 8Gi or 500M")
    return math.ceil(float(found[1]) * UNITS[found[2] or ""])
