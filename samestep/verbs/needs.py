"""What a recipe needs of the machines at least: bytes of memory, of disk and of network, by its weights alone."""

import math
from dataclasses import replace
from pathlib import Path

from samestep.errors import RecipeError
from samestep.launch.health.finding import Need
from samestep.launch.hosts import hosts_of
from samestep.model.folder import resolve
from samestep.plan import resident
from samestep.plan.facts import Facts, of_model
from samestep.plan.here import held_of, micro_of
from samestep.recipe.machines import Run
from samestep.recipe.schema import Model, Recipe
from samestep.recover import stored
from samestep.verbs.room import MOMENTS, trained

FLOAT32 = 4  # bytes
WIRE = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes a number, without the scales


def need_of(recipe: Recipe, base: Path, model: Model) -> Need:
    """model: the recipe's, or one whose config is empty where it lies nowhere yet. RecipeError as `resolve`."""
    near = places_of(recipe.run)
    weights = None if model.config is not None else trained(model, base, model.vocabulary)
    known = Need(near, recipe.compute.threads, keep=_kept(recipe), compiles=recipe.compute.compile)
    known = replace(known, transformers=not recipe.model.family_used, cuda=recipe.compute.device == "cuda")
    if weights is None:
        return known
    moments = MOMENTS[recipe.optimizer.kind] + (recipe.sync.told != "float32")
    return replace(
        known,
        memory=_memory(recipe, base, model, weights),
        sent=_sent(recipe, weights, len(near)),
        checkpoint=FLOAT32 * weights * (1 + moments),
        model=FLOAT32 * weights,
    )


def places_of(run: Run) -> tuple[int, ...]:
    """Replicas on each host, which are filled in their order."""
    left, found = run.replicas, []
    for host in hosts_of(run):
        found.append(min(left, host.places))
        left -= found[-1]
    return tuple(count for count in found if count)


def all_weights(model: Model, base: Path, trained: int) -> int:
    """Adapters stand beside weights that are not trained."""
    folder = resolve(model, base)
    if model.lora is None or folder is None:
        return trained
    return trained + sum(math.prod(tensor.shape) for tensor in stored.find(folder).values())


def _memory(recipe: Recipe, base: Path, model: Model, trained: int) -> int:
    """Of all replicas, each moment held once: sync.state adds copies only where there is room."""
    frozen = (all_weights(model, base, trained) - trained) * (2 if model.dtype == "bfloat16" else FLOAT32)
    held = held_of(recipe, [trained], 1, frozen=frozen, mapped=frozen)
    return round(resident.machine(resident.BARE, _shape(model, base), micro_of(recipe), held, recipe.run.replicas))


def _shape(model: Model, base: Path) -> Facts | None:
    """None for a mixture of experts: then the weights alone are counted."""
    try:
        return of_model(model, base)
    except RecipeError:
        return None


def _sent(recipe: Recipe, weights: int, hosts: int) -> int:
    """By one host: its part of the sums and of new weights (a ring's, Patarasuk and Yuan 2009); islands meet rarely."""
    often = recipe.sync.diloco.every if recipe.sync.strategy == "diloco" else 1
    each = WIRE[recipe.sync.wire] + WIRE[recipe.sync.told]
    return round(each * weights * (hosts - 1) / hosts / often)


def _kept(recipe: Recipe) -> int:
    return recipe.recover.keep if recipe.recover.checkpoint_every else 0
