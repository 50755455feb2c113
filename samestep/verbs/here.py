"""samestep plan RECIPE --gpu here: step time, memory and bytes sent of 1, 2, ... replicas on this machine. No torch."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samestep import units
from samestep.data.order import steps_for
from samestep.errors import RecipeError
from samestep.plan import facts
from samestep.plan.here import Row, rows
from samestep.recipe.load import load
from samestep.recipe.schema import Recipe
from samestep.verbs import calibration
from samestep.verbs.room import free, held

MOST = 4  # replicas, where nobody says how many


@dataclass(frozen=True)
class Here:
    """free: bytes of memory that new processes could have; None: not known. piloted: replicas of the pilot."""

    name: str
    machine: dict[str, Any]
    piloted: int
    parameters: int
    steps: int
    rows: list[Row]
    free: int | None


def plan(target: Path, overrides: Sequence[str], replicas: str | None) -> Here:
    """RecipeError for what cannot be read, a recipe that no pilot has measured here, and replicas on several hosts."""
    if target.is_dir() or target.suffix == ".json":
        raise RecipeError(f"--gpu here takes a recipe, but {target} is a model; samestep init writes a recipe for it")
    recipe, base = load(target, overrides), target.resolve().parent
    if recipe.run.hosts:
        raise RecipeError("--gpu here is this machine, but run.hosts names several; set run.hosts to null")
    if recipe.sync.strategy == "auto":
        raise RecipeError("--gpu here plans one strategy, but sync.strategy is auto; set exact, fast or diloco")
    known = calibration.known(recipe, base, str(target))
    measured, batch = known["measured"], recipe.rows_per_step
    length = (recipe.steps, recipe.tokens, recipe.epochs)
    steps = steps_for(*length, rows=known["rows"], rows_per_step=batch, context=recipe.data.context)
    shape = replace(facts.of_model(recipe.model, base), vocabulary=measured["vocabulary"])
    states = {count: state(recipe, base, measured["vocabulary"], count) for count in counts(replicas, recipe)}
    found = rows(recipe, shape, measured, steps, states)
    return Here(str(target), known["machine"], measured["replicas"], sum(measured["sizes"]), steps, found, free())


def counts(text: str | None, recipe: Recipe) -> list[int]:
    """Of `1,2,4`; RecipeError for more than can share a step."""
    most = recipe.most_replicas
    if text is None:
        return list(range(1, min(MOST, most) + 1))
    if not all(re.fullmatch(r"\s*[1-9]\d*\s*", part) for part in text.split(",")):
        raise RecipeError(f"--replicas {text} is no list of numbers of replicas; write 1,2,4")
    found = sorted({int(part) for part in text.split(",")})
    if found[-1] > most:
        raise RecipeError(f"--replicas {text} asks for {found[-1]}, but a step has {most} shares; take fewer")
    return found


def state(recipe: Recipe, base: Path, vocabulary: int, replicas: int) -> str:
    """Who holds the moments, as a run of so many decides it."""
    run = recipe.run.model_copy(update={"replicas": replicas})
    return held(recipe.model_copy(update={"run": run}), base, vocabulary).state


def as_dict(found: Here) -> dict[str, Any]:
    return asdict(found) | {"rows": [asdict(row) | {"seconds": row.seconds} for row in found.rows]}


def lines(found: Here) -> list[str]:
    said = f"{found.name}: {units.count(found.parameters)} trained parameters, {found.steps:,} steps"
    cores = f"{found.machine['cores']} cores of {found.machine['cpu']}, torch {found.machine['torch']}"
    head = f"{'replicas':>9}{'a step':>10}{'tokens/s':>10}{'scaling':>9}{'time':>12}{'memory each':>13}{'of all':>9}"
    body = [_line(row, found) for row in found.rows]
    best = max(found.rows, key=lambda row: row.tokens_per_second)
    return [said, cores, "", f"{head}{'sent a step':>13}  moments", *body, "", *_behind(best), *_notes(found)]


def _line(row: Row, found: Here) -> str:
    time = units.duration(row.seconds * found.steps)
    speed = f"{units.count(row.tokens_per_second):>10}{units.share(row.efficiency):>9}"
    memory = f"{units.size(row.memory):>13}{units.size(row.machine):>9}"
    full = "" if found.free is None or row.machine <= found.free else ", more than is free"
    return (
        f"{row.replicas:>9}{units.duration(row.seconds):>10}{speed}{time:>12}{memory}"
        f"{units.size(max(row.sent)):>13}  {row.state}{full}"
    )


def _behind(row: Row) -> list[str]:
    """What the fastest number of replicas spends time and memory on."""
    spent = ", ".join(f"{name} {units.duration(each)}" for name, each in _largest(row.step) if each)
    kinds = ", ".join(f"{name} {units.size(each)}" for name, each in _largest(row.parts) if each > 0.01 * row.memory)
    return [f"{row.replicas}: a step     {spent}", f"{' ' * len(str(row.replicas))}  memory     {kinds}"]


def _largest(parts: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(parts.items(), key=lambda part: -part[1])


def _notes(found: Here) -> list[str]:
    return [
        f"measured by a pilot on {found.piloted} replicas; scaling: speed a replica, of that of one alone",
        "memory each: as its process shows it; of all: what the machine must have, shared memory and libraries once",
    ]
