"""samestep train and resume --engine env: called by each of the processes that torchrun, srun or a JobSet starts.

All give the same command. Process 0 begins the run, or goes on with what the run folder holds; the others prepare the
same recipe and data, and are refused where they are not the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from samestep.errors import ClusterError, RecipeError
from samestep.launch.agent import Make
from samestep.launch.engine import Engine, Program
from samestep.launch.env import Env, follow, here
from samestep.recipe.load import load
from samestep.recipe.schema import Recipe
from samestep.recover import journal
from samestep.recover.taken import taken
from samestep.verbs.prepare import prepare
from samestep.verbs.program import program
from samestep.verbs.resume import begin_or_go_on, differs, go_on_or_tell, opened_of
from samestep.verbs.train import Summary, saying

LIFE_BEFORE = 10.0  # seconds that a launcher may take to end it

Lead = Callable[[Sequence[str], Engine], Summary]  # what process 0 does, with overrides and its engine


def train(
    recipe: Path, overrides: Sequence[str], run: Path | None, console: Console, metrics: int | None
) -> Summary | None:
    """The summary in process 0, None in all others. Every error ends all of them with its code. metrics: the port at
    which process 0 serves them.
    """
    if run is None:
        here()
        raise RecipeError(
            "--engine env needs --run DIR, a folder that the hosts share; it is the same for all processes"
        )

    def lead(words: Sequence[str], engine: Engine) -> Summary:
        return begin_or_go_on(recipe, words, run, engine, console, metrics)

    return _launched(recipe, overrides, run, console, lead, lambda: recipe.resolve().parent)


def resume(run: Path, overrides: Sequence[str], console: Console, metrics: int | None) -> Summary | None:
    """As `train`, of a run that has begun, under whatever engine."""

    def lead(words: Sequence[str], engine: Engine) -> Summary:
        return go_on_or_tell(run, words, engine, console, metrics)

    def base() -> Path:
        return Path(opened_of(run, journal.read(run / journal.NAME))["base"])

    return _launched(run / "recipe.yaml", overrides, run, console, lead, base)


def _launched(
    recipe: Path, overrides: Sequence[str], run: Path, console: Console, lead: Lead, base: Callable[[], Path]
) -> Summary | None:
    me, patience = here()
    words = [*overrides, f"run.replicas={me.size}", "run.hosts=null"]
    if me.index:
        follow(me, run, patience, lambda: _follower(recipe, words, run, base()))
        return None
    with Env(me, run, patience) as engine, taken(run, me.by, saying(console), LIFE_BEFORE):
        refuse(load(recipe, overrides), me.size, me.by)
        return lead(words, engine)


def _follower(recipe: Path, overrides: Sequence[str], run: Path, base: Path) -> Make:
    """How process 0's work becomes this process's program."""
    prepared = prepare(recipe, overrides, lambda line: None, base=base)

    def make(work: dict[str, Any]) -> Program:
        job = prepared.job("train", run)
        mine = job.dump()
        _refuse_other_work(mine, work)
        own = {key: mine[key] for key in ("base", "corpora", "run")}
        return replace(program(job), work=work | own | {"checkpoint": _moved(work, run)})

    return make


def refuse(recipe: Recipe, size: int, by: str) -> None:
    """ClusterError or RecipeError for what processes that `by` starts cannot do."""
    recipe.refuse_shards("--engine env")
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
