"""What pilots have measured on this machine, kept beside the tokenized data: by processor, versions and micro-batch.

Steps, lanes, replicas, what is sent in which numbers and how often things are saved may change without another pilot;
what a micro-batch is may not.
"""

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samestep.errors import RecipeError
from samestep.events import Event
from samestep.recipe.schema import Recipe
from samestep.verbs.places import cache_of

FOLDER = "pilots"
CPUINFO = Path("/proc/cpuinfo")


def machine(cpuinfo: Path = CPUINFO) -> dict[str, Any]:
    """Processor, cores and versions that times depend on. No torch is imported."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return {"cpu": names[0] if names else platform.machine(), "cores": cores, "torch": version("torch")}


def micro_batch(recipe: Recipe, base: Path) -> dict[str, Any]:
    """What of a recipe the times of a pilot depend on. base: where its relative paths start."""
    fields = recipe.model_dump(mode="json")
    chosen = {name: fields[name] for name in ("model", "data", "objective", "compute")}
    return chosen | {"micro_batch": recipe.batch.micro_batch, "optimizer": recipe.optimizer.kind, "base": str(base)}


def keep(recipe: Recipe, base: Path, measured: Event, rows: int) -> Path:
    """Write what a pilot has measured, in place of an earlier one. rows: that an epoch reads. Returns the file."""
    file = _file(recipe, base)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    known = {"machine": machine(), "recipe": micro_batch(recipe, base), "rows": rows, "measured": measured}
    unfinished.write_text(json.dumps(known, indent=1) + "\n")
    unfinished.replace(file)
    return file


def known(recipe: Recipe, base: Path, name: str) -> dict[str, Any]:
    """What a pilot of this micro-batch has measured here. name: of the recipe. RecipeError where none has."""
    try:
        found: dict[str, Any] = json.loads(_file(recipe, base).read_text())
    except OSError:
        raise RecipeError(
            f"no pilot has measured a micro-batch of {name} on this machine; run samestep pilot {name} first"
        ) from None
    return found


def _file(recipe: Recipe, base: Path) -> Path:
    text = json.dumps([machine(), micro_batch(recipe, base)], sort_keys=True)
    return cache_of(recipe) / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
