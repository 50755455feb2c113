"""What a pod of one replica asks for: processors, memory, and time to end. Pure; estimates from above."""

import math
import re
from pathlib import Path

from samestep.errors import RecipeError
from samestep.plan import resident
from samestep.plan.facts import of_model
from samestep.plan.here import held_of, micro_of
from samestep.plan.resident import Program
from samestep.recipe.schema import Recipe

UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

# Bytes before there is a model: Python and torch twice, in the replica and in what starts it, and room to read data.
PROGRAM = Program(600 * 2**20, 0)
MARGIN = 1.25
DISK = 50e6  # bytes a second that a replica writes at least, to a volume that others write to as well
WAY_OUT = 30  # seconds for the step under way, and to end


def processors(recipe: Recipe) -> str:
    """One beside those that compute: it reads, saves and watches."""
    return str(recipe.compute.threads + 1)


def memory(recipe: Recipe) -> int:
    """Bytes that a replica of the built-in model takes at most, alone on its host.

    All moments are counted, whoever holds them: where few replicas are left each holds more.
    """
    facts, replicas = of_model(recipe.model, Path()), recipe.run.replicas
    held = held_of(recipe, [facts.parameters], replicas, recipe.steps or recipe.recover.checkpoint_every)
    each = [resident.replica(PROGRAM, facts, micro_of(recipe), held, replicas, rank) for rank in range(replicas)]
    return round(PROGRAM.private + MARGIN * (max(one.bytes for one in each) - PROGRAM.private))


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
