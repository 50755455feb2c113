"""samestep resume: a run that was stopped or killed goes on, on any number of replicas, to the same model."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from samestep.errors import DataError, RecipeError
from samestep.events import Event
from samestep.launch.engine import Engine
from samestep.recipe.load import load
from samestep.recipe.schema import Recipe
from samestep.recover import alternate, checkpoint, journal, shards
from samestep.recover.checkpoint import Saved
from samestep.recover.disk import Disk
from samestep.recover.folders import tidy
from samestep.recover.journal import Journal
from samestep.recover.taken import taken
from samestep.replica.job import Job
from samestep.report.progress import progress, reading
from samestep.verbs.places import anchored
from samestep.verbs.prepare import Prepared, prepare
from samestep.verbs.report import reported
from samestep.verbs.train import Summary, begin, carry_out, chosen, engine_of, heard, opening, own_folder, saying

FREE = ("run.",)  # keys that may change between two lives of a run: they change no number
FIXED = ("seed", "steps", "rows", "rows_digest")  # of the first line of the journal: what the numbers follow from


@dataclass(frozen=True)
class Before:
    """A run as it was left. last: the last step in the journal. found: the checkpoint that it goes on from.

    alternates: folders of its own on other disks, in which the journal's last lines or checkpoints may be.
    """

    opened: Event
    events: list[Event]
    last: int
    found: Saved | None
    refused: list[str]
    alternates: list[Path]

    @property
    def step(self) -> int:
        return self.found.step if self.found else 0


def resume(
    run: Path,
    overrides: Sequence[str],
    engine: str,
    console: Console,
    metrics: int | None = None,
    address: str | None = None,
) -> Summary:
    """Go on with the run in the folder `run`. Says from where on `console`; returns the summary of the whole run.
    metrics: the port to serve them at. address: see `engine_of`.
    """
    chosen = engine_of(engine, address)
    there = taken(run, "samestep resume", saying(console)) if run.is_dir() else contextlib.nullcontext()
    with there:
        return go_on(run, overrides, chosen, console, metrics)


def either(
    recipe: Path,
    overrides: Sequence[str],
    run: Path | None,
    engine: str,
    console: Console,
    metrics: int | None = None,
    address: str | None = None,
) -> Summary:
    """As `begin_or_go_on`, for what may start it several times: a queue, a supervisor."""
    if run is None:
        raise RecipeError("--resume needs --run DIR, the folder of the run that it goes on with")
    chosen = engine_of(engine, address)
    with own_folder(run, recipe.stem, saying(console)):
        return begin_or_go_on(recipe, overrides, run, chosen, console, metrics)


def begin_or_go_on(
    recipe: Path, overrides: Sequence[str], run: Path, engine: Engine, console: Console, metrics: int | None
) -> Summary:
    """Begin the run in the folder `run`, which is this job's alone, or go on with it where it has begun; where it has
    ended, only return its summary. RecipeError where it is another recipe's.
    """
    events = journal.read(run / journal.NAME) if (run / journal.NAME).exists() else []
    if not any(event["event"] == "opened" for event in events):
        return begin(recipe, overrides, run, engine, console, metrics)
    _refuse_other_run(load(recipe, overrides), run)
    free = [override for override in overrides if override.startswith(FREE)]
    return go_on_or_tell(run, free, engine, console, metrics)


def go_on_or_tell(
    run: Path, overrides: Sequence[str], engine: Engine, console: Console, metrics: int | None
) -> Summary:
    """Where the run has ended, only its summary: a launcher that starts it again is told that all is well."""
    events = journal.read(run / journal.NAME)
    if any(event["event"] == "finished" for event in events):
        saying(console)(f"{run} has ended already")
        return summary_of(run, events)
    return go_on(run, overrides, engine, console, metrics)


def go_on(run: Path, overrides: Sequence[str], engine: Engine, console: Console, metrics: int | None) -> Summary:
    """As `resume`, in a folder that is this job's alone."""
    began, say = time.time(), saying(console)
    before = look(run, overrides)
    for reason in before.refused:
        say(f"passed over: {reason}")
    refuse_other_recipe(run / "recipe.yaml", before.opened)
    with reading(console) as bar:
        prepared = prepare(run / "recipe.yaml", _allowed(overrides), say, bar, Path(before.opened["base"]))
    _refuse_changes(before.opened, opening(prepared, began), run)
    for line in (*chosen(prepared), sentence(before, prepared)):
        say(line)
    put_in_order(run, before, prepared.alternate)
    summary = _so_far(run, before, prepared.recipe.run.replicas)
    panel = progress(console, run.name, prepared.steps, summary.replicas, prepared.recipe.run.log_every)
    with (
        heard(prepared.recipe, run, metrics, panel.note) as hearers,
        reported(run, say),
        Journal(run / journal.NAME, prepared.alternate) as written,
    ):
        written.write(resumed(before, prepared, began))
        with contextlib.closing(panel):
            job = rest(run, before, prepared)
            carry_out(job, engine, written, panel, summary, hearers, replayed(before))
        seconds = round(time.time() - began, 3)
        written.write({"event": "finished", "seconds": seconds, "digest": summary.digest})
    return summary


def look(run: Path, overrides: Sequence[str] = ()) -> Before:
    """How the run was left. overrides: of its recipe, for an alternate that its journal does not name.

    DataError for no run, RecipeError for one that has ended.
    """
    path = run / journal.NAME
    alternates = _alternates(run, journal.read(path), overrides)
    events = journal.read(path, *alternates)
    opened = opened_of(run, events)
    if any(event["event"] == "finished" for event in events):
        raise RecipeError(f"{run} has ended; there is nothing to resume (samestep digest {run})")
    steps = [event["step"] for event in events if event["event"] == "step"]
    found, refused = checkpoint.newest(*checkpoint.places(run, *alternates))
    return Before(opened, events, steps[-1] if steps else 0, found, refused, alternates)


def opened_of(run: Path, events: Sequence[Event]) -> Event:
    """How the run began. DataError where its journal does not say so."""
    opened = next((event for event in events if event["event"] == "opened"), None)
    if opened is None or not {"base", "recipe"} <= opened.keys():
        raise DataError(f"{run}/journal.jsonl does not say how the run began; start it anew with samestep train")
    return opened


def _alternates(run: Path, events: Sequence[Event], overrides: Sequence[str]) -> list[Path]:
    """Those that are the run's own: named by its journal, or by its recipe as it is now asked for."""
    found = alternate.named(events, run)
    base = next((Path(event["base"]) for event in events if "base" in event), run)
    now = anchored(load(run / "recipe.yaml", overrides), base).run.alternate
    asked = [Path(now)] if now and alternate.owned(Path(now), run) else []
    return list(dict.fromkeys(found + asked))


def put_in_order(run: Path, before: Before, now: Path | None) -> None:
    """Delete or put back what a life that was cut short has left half done. now: the alternate from here on."""
    if now is not None:
        alternate.take(now, run)
    for other in before.alternates:
        if other != now:
            Journal(run / journal.NAME, other).close()
    for place in checkpoint.places(run, now):
        checkpoint.clean(Disk(), place)
    for name in ("best", "model"):
        tidy(run / name)


def rest(run: Path, before: Before, prepared: Prepared) -> Job:
    """What is left to do of the run."""
    return prepared.job("train", run, before.found.folder if before.found else None)


def sentence(before: Before, prepared: Prepared) -> str:
    """Where the run goes on, for a person."""
    step, rows = before.step, before.step * prepared.recipe.rows_per_step
    machines = f"replicas {_replicas(before)} to {prepared.recipe.run.replicas}"
    again = f"; steps {step + 1} to {before.last} are computed again, to the same bits" if before.last > step else ""
    return f"resuming after step {step:,}, row {rows:,}, {machines}{again}: 0 lost, 0 repeated"


def _replicas(before: Before) -> int:
    return int(next(event["replicas"] for event in reversed(before.events) if "replicas" in event))


def _allowed(overrides: Sequence[str]) -> Sequence[str]:
    for override in overrides:
        if not override.startswith(FREE):
            raise RecipeError(
                f"{override} may change the numbers of a run that has begun; only run.* can be set when resuming"
            )
    return overrides


def refuse_other_recipe(path: Path, opened: Event) -> None:
    """A flipped bit in a learning rate is a number too."""
    if path.is_file() and shards.digest(path.read_bytes()) != opened["recipe"]:
        raise DataError(
            f"{path} is not what the run began with (its digest differs), and the model would be another; restore it, "
            f"or start anew with samestep train; run.* can be set on the command line"
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


def _refuse_changes(was: Event, now: Event, run: Path) -> None:
    for key in FIXED:
        if was[key] != now[key]:
            raise DataError(
                f"{run} began with {key} {was[key]}, now it is {now[key]}: its data have changed, and the model would "
                f"too; restore them, or start anew with samestep train"
            )


def resumed(before: Before, prepared: Prepared, now: float) -> Event:
    """The first line of this life in the journal."""
    found: dict[str, Any] = {"event": "resumed", "time": round(now, 3), "step": before.step, "last": before.last}
    found |= {"state": prepared.holding.state, "state_reason": prepared.holding.reason}
    found |= {"alternate": prepared.recipe.run.alternate}
    return found | {"replicas": prepared.recipe.run.replicas, "refused": before.refused}


def _so_far(run: Path, before: Before, replicas: int) -> Summary:
    return summary_of(run, [event for event in before.events if event.get("step", 0) <= before.step], replicas)


def summary_of(run: Path, events: Sequence[Event], replicas: int = 1) -> Summary:
    summary = Summary(str(run), replicas=replicas)
    for event in events:
        summary.add(event)
    return summary


def replayed(before: Before) -> dict[int, str]:
    """Step -> the digest that the journal has of it, of steps that are computed again."""
    steps = [event for event in before.events if event["event"] == "step" and "digest" in event]
    return {event["step"]: event["digest"] for event in steps if event["step"] > before.step}
