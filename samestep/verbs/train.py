"""samestep train: from a recipe to a model folder."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from samestep.data.corpus import Corpus
from samestep.errors import ClusterError, RecipeError, SamestepError
from samestep.events import Event
from samestep.launch.engine import Engine, Restore
from samestep.launch.gpus import refuse_no_gpu
from samestep.launch.local import Local
from samestep.launch.ray import Ray
from samestep.launch.rendezvous import FOLDER as LAUNCH
from samestep.recipe.load import dump, load
from samestep.recipe.schema import Recipe
from samestep.recover import alternate, checkpoint, shards
from samestep.recover.journal import NAME, Journal
from samestep.recover.taken import NAME as LOCK
from samestep.recover.taken import taken
from samestep.replica.job import Job
from samestep.report.metrics import serving
from samestep.report.progress import Progress, progress, reading, show
from samestep.report.sinks import Sinks, refuse_missing
from samestep.verbs.logbook import Hearer, Logbook
from samestep.verbs.pilot import as_dict, settled
from samestep.verbs.prepare import Prepared, Say, prepare
from samestep.verbs.program import program, terms
from samestep.verbs.report import reported
from samestep.verbs.stopping import Stopping

ENGINES: dict[str, Callable[[str | None], Engine]] = {"local": lambda address: Local(), "ray": Ray}
LAUNCHED = "env"  # others start the processes: verbs/launched.py
RUNS = Path("runs")  # of runs without a folder that is asked for


@dataclass
class Summary:
    """What a run came to; filled by its events.

    step_seconds: the mean of all steps but the first, which also warms up. predicted_step_seconds: by the pilot that
    chose the strategy, if one did.
    """

    run: str
    steps: int = 0
    final_loss: float | None = None
    tokens_per_second: float = 0.0
    digest: str | None = None
    bits_per_byte: float | None = None
    zlib_bits_per_byte: float | None = None
    held_out_loss: float | None = None
    held_out_accuracy: float | None = None
    stopped_early: bool = False
    sample: str | None = None
    replicas: int = 1
    bytes_sent: int = 0
    step_seconds: float | None = None
    predicted_step_seconds: float | None = None
    seconds: float = field(default=0.0, repr=False)
    first_seconds: float | None = field(default=None, repr=False)
    timed_steps: int = field(default=0, repr=False)  # steps of this life
    tokens: int = field(default=0, repr=False)

    def add(self, event: Event) -> None:
        match event["event"]:
            case "step":
                self.steps, self.final_loss, self.bytes_sent = event["step"], event["loss"], event["bytes_sent"]
                self._timed(event["seconds"], event["tokens"])
            case "evaluated":
                self.held_out_loss, self.held_out_accuracy = event["loss"], event.get("accuracy")
                self.bits_per_byte = event.get("bits_per_byte")
                self.zlib_bits_per_byte = event.get("zlib_bits_per_byte")
            case "stopped_early":
                self.stopped_early = True
            case "saved":
                self.digest = event["digest"]
            case "sample" if "step" not in event:
                self.sample = event["prompt"] + event["text"]

    def _timed(self, seconds: float, tokens: int) -> None:
        self.seconds += seconds
        self.tokens += tokens
        self.timed_steps += 1
        self.tokens_per_second = self.tokens / self.seconds
        if self.first_seconds is None:
            self.first_seconds = seconds
        else:
            self.step_seconds = (self.seconds - self.first_seconds) / (self.timed_steps - 1)


def train(
    recipe: Path,
    overrides: Sequence[str],
    run: Path | None,
    engine: str,
    console: Console,
    metrics: int | None = None,
    address: str | None = None,
) -> Summary:
    """Train and return the summary. What is shown while it runs goes to `console`. metrics: the port they get.
    address: see `engine_of`.
    """
    chosen = engine_of(engine, address)
    with own_folder(run, recipe.stem, saying(console)) as folder:
        return begin(recipe, overrides, folder, chosen, console, metrics)


def saying(console: Console) -> Say:
    return partial(console.print, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def own_folder(asked: Path | None, name: str, say: Say) -> Iterator[Path]:
    """The folder of a run, this job's alone; made where it is not there, and deleted if it stays empty, as are those
    above it. Without one that is asked for, the first of runs/NAME-1, ... that nobody has.
    """
    if asked is not None and asked.exists() and not asked.is_dir():
        raise RecipeError(f"{asked} is no folder; choose another one with --run")
    was_there = asked is not None and asked.exists()
    above = [place for place in (asked.parents if asked else [RUNS]) if not place.exists()]
    folder = asked or _new(name)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as left:
        if not was_there:
            left.callback(_delete_empty, [folder, *above])
        left.enter_context(taken(folder, "samestep train", say))
        yield folder


def _new(name: str) -> Path:
    number = 1
    while True:
        folder = RUNS / f"{name}-{number}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        number += 1


def _delete_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def engine_of(name: str, address: str | None) -> Engine:
    """address: of a cluster that the engine is to work on, for engines that know clusters. RecipeError."""
    if name not in ENGINES:
        raise RecipeError(f"--engine is {name!r}, but must be one of {', '.join([*ENGINES, LAUNCHED])}")
    refuse_address(name, address)
    return ENGINES[name](address)


def refuse_address(engine: str, address: str | None) -> None:
    if address is not None and engine != "ray":
        raise RecipeError(f"--address {address} is for --engine ray; leave it out, or name that engine")


def begin(
    recipe: Path, overrides: Sequence[str], folder: Path, engine: Engine, console: Console, metrics: int | None
) -> Summary:
    """folder: of the run, this job's alone. RecipeError where it holds anything."""
    began, say = time.time(), saying(console)
    _refuse_used(folder)
    if load(recipe, overrides).compute.device == "cuda" and not isinstance(engine, Ray):  # its machines are others
        refuse_no_gpu()
    with reading(console) as bar:
        prepared = prepare(recipe, overrides, say, bar)
    refuse_missing(prepared.recipe.run.sinks)
    prepared, found = settled(prepared, say)
    for line in chosen(prepared):
        say(line)
    if prepared.alternate is not None:
        alternate.refuse_used(prepared.alternate)
        alternate.take(prepared.alternate, folder)
    summary = Summary(str(folder), replicas=prepared.recipe.run.replicas)
    panel = progress(console, recipe.stem, prepared.steps, summary.replicas, prepared.recipe.run.log_every)
    (folder / "recipe.yaml").write_text(dump(prepared.recipe))
    with (
        heard(prepared.recipe, folder, metrics, panel.note) as hearers,
        reported(folder, say),
        Journal(folder / NAME, prepared.alternate) as journal,
    ):
        journal.write(opening(prepared, began))
        if found:
            journal.write({"event": "piloted"} | as_dict(found))
            summary.predicted_step_seconds = found.choice.seconds
        with contextlib.closing(panel):
            carry_out(prepared.job("train", folder), engine, journal, panel, summary, hearers)
        journal.write({"event": "finished", "seconds": round(time.time() - began, 3), "digest": summary.digest})
    return summary


@contextlib.contextmanager
def heard(recipe: Recipe, run: Path, metrics: int | None, say: Say) -> Iterator[list[Hearer]]:
    """Who else is told of a run's events, as its recipe and the command line ask for."""
    sinks = Sinks(recipe.run.sinks, run, recipe.model_dump(mode="json"), say)
    with contextlib.closing(sinks), serving(metrics, say) as hearers:
        yield [*hearers, sinks]


def carry_out(
    job: Job,
    engine: Engine,
    journal: Journal,
    panel: Progress,
    summary: Summary,
    hearers: Sequence[Hearer] = (),
    replayed: Mapping[int, str] | None = None,
) -> None:
    """`execute`, with signals asking for a stop. Raises Stopped where one did; says how a run that fails goes on."""
    try:
        with Stopping(engine, panel.note, summary.run) as stopping:
            execute(job, engine, journal, [summary.add, stopping.seen, partial(show, panel), *hearers], replayed)
    except SamestepError as error:
        journal.write(_ended(error, time.time()))
        if isinstance(error, ClusterError):
            error.args = (f"{error}; samestep resume {summary.run} {_onward(job)}",)
        raise


def _ended(error: SamestepError, now: float) -> Event:
    return {"event": "ended", "time": round(now, 3), "reason": str(error), "exit_code": error.exit_code}


def _onward(job: Job) -> str:
    kept = checkpoint.saved(*job.places)
    return "goes on from the last checkpoint" if kept else "begins with step 1: no checkpoint had been written yet"


def execute(
    job: Job,
    engine: Engine,
    journal: Journal,
    hearers: Sequence[Hearer],
    replayed: Mapping[int, str] | None = None,
) -> None:
    """Run a job's replicas. hearers: called with each event once the journal has it.

    replayed: step -> the digest that it had before, of steps that are computed again.
    """
    logbook = Logbook(job, journal, hearers, replayed or {})
    try:
        engine.run(replace(program(job), restore=_restore(job, logbook)), terms(job.recipe), logbook.hear)
    finally:
        logbook.close()


def _restore(job: Job, logbook: Logbook) -> Restore | None:
    """The strategy fast survives nobody: its transport cannot be woken, and its bits follow the number of replicas.
    Nor do replicas that are split: those left would wait inside themselves, where torch's transport cannot be woken.
    """
    alone = job.recipe.sync.strategy == "fast" or job.recipe.compute.shards > 1
    return None if alone else logbook.restore


def chosen(prepared: Prepared) -> list[str]:
    """What was decided for the recipe, for a person."""
    auto = prepared.recipe.sync.state == "auto" and prepared.recipe.sync.strategy == "exact"
    return [f"sync.state {prepared.holding.state}: {prepared.holding.reason}"] if auto else []


def opening(prepared: Prepared, now: float) -> Event:
    """The first line of a journal: with it and the recipe, the order of all samples can be recomputed."""
    return {
        "event": "opened",
        "time": round(now, 3),
        "seed": prepared.recipe.seed,
        "steps": prepared.steps,
        "rows": prepared.rows,
        "rows_digest": prepared.rows_digest,
        "replicas": prepared.recipe.run.replicas,
        "base": str(prepared.base),
        "alternate": prepared.recipe.run.alternate,
        "recipe": shards.digest(dump(prepared.recipe).encode()),
        "state": prepared.holding.state,
        "state_reason": prepared.holding.reason,
        "sources": {source: _source(corpus) for source, corpus in prepared.corpora.items()},
    }


def _source(corpus: Corpus) -> dict[str, Any]:
    """What a source came to; the samples that were left out are named by file and line, the first ones."""
    return {
        "corpus": corpus.folder.name,
        "format": corpus.format,
        "sequences": len(corpus.train.ends),
        "held_out_sequences": len(corpus.held_out.ends),
        "skipped": corpus.skipped_count,
        "skipped_samples": corpus.skipped,
    }


def _refuse_used(run: Path) -> None:
    """RecipeError if the folder holds anything but what a launch has put there, and a life that ended before its
    journal began.
    """
    if not _is_fresh(run):
        what = "holds another run" if (run / NAME).exists() else "is not an empty folder"
        raise RecipeError(f"{run} {what}; choose another folder with --run, or delete it first")


def _is_fresh(folder: Path) -> bool:
    launched, left = (folder / LAUNCH).exists(), {LAUNCH, "recipe.yaml", NAME}
    return {path.name for path in folder.iterdir()} - {LOCK} <= (left if launched else set())


def lines(summary: Summary) -> list[str]:
    """The summary for a terminal."""
    rows: list[tuple[str, Any]] = [("steps", summary.steps), ("final_loss", _number(summary.final_loss))]
    rows.append(("tokens_per_second", f"{summary.tokens_per_second:,.0f}"))
    if summary.predicted_step_seconds and summary.step_seconds:
        off = summary.predicted_step_seconds / summary.step_seconds - 1
        beside = f"(the pilot predicted {summary.predicted_step_seconds:.3f}, {off:+.0%})"
        rows.append(("seconds_per_step", f"{summary.step_seconds:.3f}  {beside}"))
    if summary.held_out_loss is not None:
        rows.append(("held_out_loss", _number(summary.held_out_loss)))
    if summary.held_out_accuracy is not None:
        rows.append(("held_out_accuracy", _number(summary.held_out_accuracy)))
    if summary.bits_per_byte is not None:
        beside = f"(zlib level 9 needs {_number(summary.zlib_bits_per_byte)} for the same bytes)"
        rows.append(("held_out_bits_per_byte", f"{_number(summary.bits_per_byte)}  {beside}"))
    rows += [("run", summary.run), ("digest", summary.digest)]
    width = max(len(name) for name, _ in rows)
    sample = [] if summary.sample is None else ["", *summary.sample.splitlines(), ""]
    return sample + [f"{name.ljust(width)}  {value}" for name, value in rows]


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4f}"
