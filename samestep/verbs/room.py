"""What sync.state: auto is decided by: the bytes of the moments, and the memory that is free. No torch."""

import math
import re
from pathlib import Path

from samestep.model.folder import resolve
from samestep.recipe.schema import Model, Recipe
from samestep.recover import holding, stored
from samestep.recover.holding import Holding

MOMENTS = {"adamw": 2, "sgd": 1}  # of each weight, in float32
MEMORY = Path("/proc/meminfo")


def held(recipe: Recipe, base: Path, vocabulary: int) -> Holding:
    """Who holds the moments: as the recipe says, else by what there is now. vocabulary: tokens of the data."""
    if recipe.sync.wire != "float32":
        reason = (
            f"what sync.wire {recipe.sync.wire} rounds off is with one replica only; one that dies costs the steps "
            f"since the newest checkpoint"
        )
        return Holding("sharded", reason)
    if recipe.sync.state != "auto":
        return Holding(recipe.sync.state, "the recipe says so")
    if recipe.compute.shards > 1:
        return Holding("sharded", "replicas that are split end together; what is lost comes from the newest checkpoint")
    room = free() if recipe.compute.device == "cpu" else None  # a GPU's is not known before torch is
    return holding.choose(moments(recipe, base, vocabulary), recipe.run.replicas, room)


def moments(recipe: Recipe, base: Path, vocabulary: int) -> int | None:
    """Bytes of one copy, with masters of rounded weights; None for an architecture of transformers with new weights,
    which nobody has built yet.
    """
    weights = trained(recipe.model, base, vocabulary)
    masters = recipe.sync.told != "float32"
    return None if weights is None else 4 * (MOMENTS[recipe.optimizer.kind] + masters) * weights


def trained(model: Model, base: Path, vocabulary: int) -> int | None:
    """Weights that are trained; of adapters those of all matrices, the most that there can be."""
    if model.family_used:
        return _family(model, vocabulary)
    folder = resolve(model, base)
    if folder is None:
        return None
    shapes = [tensor.shape for tensor in stored.find(folder).values()]
    if model.lora is not None:
        return sum(model.lora.rank * sum(shape) for shape in shapes if len(shape) == 2)
    return sum(map(math.prod, shapes))


def free(memory: Path = MEMORY) -> int | None:
    """Bytes that Linux could give to new processes; None where it does not say."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", memory.read_text(), re.MULTILINE) if memory.exists() else None
    return 1024 * int(found[1]) if found else None


def _family(model: Model, vocabulary: int) -> int:
    width, inner = model.width, -(-8 * model.width // 96) * 32
    layer = 4 * width * width + 3 * width * inner + 2 * width
    return model.layers * layer + width + vocabulary * width * (1 if model.tied else 2)
