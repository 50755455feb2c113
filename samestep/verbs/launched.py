"""samestep train --engine env: called by each of the processes that torchrun, srun or a JobSet starts.

All give the same command. Process 0 begins the run, or goes on with what the run folder holds; the others prepare the
same recipe and data, and are refused where they are not the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from samestep.errors import ClusterError, RecipeError
from samestep.launch.engine import Program
from samestep.launch.env import Env, follow, here
from samestep.recipe.load import load
from samestep.recipe.schema import Recipe
from samestep.recover import journal
from samestep.verbs.prepare import prepare
from samestep.verbs.program import program
from samestep.verbs.resume import FREE, go_on, summary_of
from samestep.verbs.train import Summary, begin


def train(
    recipe: Path, overrides: Sequence[str], run: Path | None, console: Console, metrics: int | None
) -> Summary | None:
    """The summary in process 0, None in all others. Every error ends all of them with its code. metrics: the port at
    which process 0 serves them.
    """
    me, patience = here()
    if run is None:
        raise RecipeError(
            "--engine env needs --run DIR, a folder that the hosts share; it is the same for all processes"
        )
    overrides = [*overrides, f"run.replicas={me.size}", "run.hosts=null"]
    if me.index:
        follow(me, run, patience, lambda: _follower(recipe, overrides, run))
        return None
    with Env(me, run, patience) as engine:
        refuse(load(recipe, overrides[:-2]), me.size, me.by)
        return _led(recipe, overrides, run, engine, console, metrics)


def _led(
    recipe: Path, overrides: Sequence[str], run: Path, engine: Env, console: Console, metrics: int | None
) -> Summary:
    events = journal.read(run / journal.NAME) if (run / journal.NAME).exists() else []
    if not any(event["event"] == "opened" for event in events):
        return begin(recipe, overrides, run, engine, console, metrics)
    _refuse_other_run(load(recipe, overrides), run)
    if any(event["event"] == "finished" for event in events):
        console.print(f"{run} has ended already", markup=False, highlight=False, soft_wrap=True)
        return summary_of(run, events)
    free = [override for override in overrides if override.startswith(FREE)]
    return go_on(run, free, engine, console, metrics)


def _follower(recipe: Path, overrides: Sequence[str], run: Path) -> Any:
    """How process 0's work becomes this process's program."""
    prepared = prepare(recipe, overrides, lambda line: None)

    def make(work: dict[str, Any]) -> Program:
        job = prepared.job("train", run)
        mine = job.dump()
        _refuse_other_work(mine, work)
        own = {key: mine[key] for key in ("base", "corpora", "run")}
        return replace(program(job), work=work | own | {"checkpoint": _moved(work, run)})

    return make


def refuse(recipe: Recipe, size: int, by: str) -> None:
    """ClusterError for what processes that `by` starts cannot do."""
    if size > recipe.most_replicas:
        raise ClusterError(
            f"{by} starts {size} processes, but at most {recipe.most_replicas} can share a step of this recipe; start "
            "fewer, or raise its lanes"
        )
    if recipe.sync.strategy in ("auto", "fast"):
        raise ClusterError(
            f"sync.strategy {recipe.sync.strategy} is for --engine local; under {by} name another one (samestep pilot "
            "measures which)"
        )


def _moved(work: dict[str, Any], run: Path) -> str | None:
    """The checkpoint in the run folder, whose path may be another one on this host."""
    checkpoint: str | None = work["checkpoint"]
    if checkpoint is None or not Path(checkpoint).is_relative_to(work["run"]):
        return checkpoint
    return str(run / Path(checkpoint).relative_to(work["run"]))


def _refuse_other_work(mine: dict[str, Any], work: dict[str, Any]) -> None:
    """ClusterError where this host would do another run than process 0."""
    if key := differs(mine["recipe"], work["recipe"]):
        raise ClusterError(f"{key} of the recipe is not what process 0 has; give all processes the same recipe")
    if [Path(folder).name for folder in mine["corpora"]] != [Path(folder).name for folder in work["corpora"]]:
        raise ClusterError(
            "the data, or the versions of what prepares them, are not those of process 0; give all hosts the same"
        )


def _refuse_other_run(recipe: Recipe, run: Path) -> None:
    if key := differs(recipe.model_dump(mode="json"), load(run / "recipe.yaml").model_dump(mode="json")):
        raise RecipeError(f"{run} holds a run with another {key}; choose another folder with --run, or delete it first")


def differs(left: dict[str, Any], right: dict[str, Any], above: str = "") -> str | None:
    """The first key, with its section, whose values differ; those of the section run change no number."""
    for key in sorted(left.keys() | right.keys()):
        name, one, other = f"{above}{key}", left.get(key), right.get(key)
        if name == "run" or one == other:
            continue
        inner = differs(one, other, f"{name}.") if isinstance(one, dict) and isinstance(other, dict) else None
        return inner or name
    return None
