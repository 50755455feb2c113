"""samestep chaos: a recipe is run undisturbed, then again under faults drawn from a seed. Is the model the same?"""

import shlex
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from samestep import units
from samestep.errors import ClusterError, RecipeError, SamestepError
from samestep.events import Event
from samestep.launch.local import Local
from samestep.launch.strike import Halted, Striker, damage
from samestep.recipe.load import dump
from samestep.recover import checkpoint, journal
from samestep.recover.faults import DAMAGES, Fault, Scope, schedule
from samestep.recover.journal import Journal
from samestep.verbs import compare, resume
from samestep.verbs.audit import audit
from samestep.verbs.logbook import Hearer
from samestep.verbs.pilot import settled
from samestep.verbs.prepare import Prepared, Say, prepare
from samestep.verbs.train import Summary, execute, opening

LEAST = 4  # steps: fewer leave no room for a fault, a checkpoint and a fall back to it
COUNTED = {  # what is counted of a run's journal -> its heading
    "left": "deaths",
    "formed": "generations",
    "joined": "joined",
    "resumed": "resumed",
    "checkpoint_failed": "failed saves",
}
HEADINGS = ["seed", "faults", "missed", *COUNTED.values(), "lost", "repeated", "time", "model"]
Life = Callable[[Sequence[Hearer]], None]


@dataclass(frozen=True)
class Outcome:
    """One run under faults. struck: what befell it. missed: faults that it did not last for. events: how often each.

    lost, repeated: rows, as the audit counts them; None where it could not. problems: empty where all is the same.
    """

    seed: int
    struck: list[str]
    missed: int
    events: dict[str, int]
    digest: str | None
    lost: int | None
    repeated: int | None
    problems: list[str]
    seconds: float
    run: str | None = None  # kept where there is a problem


@dataclass(frozen=True)
class Verdict:
    same: bool
    recipe: str
    digest: str | None  # of the undisturbed run
    steps: int
    outcomes: list[Outcome]
    replay: list[str]  # commands, one for each run that is not the same


def chaos(recipe: Path, overrides: Sequence[str], seeds: Sequence[int], faults: int, console: Console) -> Verdict:
    """One undisturbed run, then one under `faults` faults for each seed. What strikes is told on `console`."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    prepared = ready(settled(prepare(recipe, overrides, say), say)[0])
    folder = Path(tempfile.mkdtemp(prefix="samestep-chaos-"))
    outcomes = []
    try:
        say(f"undisturbed: {prepared.steps} steps on {prepared.recipe.run.replicas} replicas")
        whole = undisturbed(prepared, folder / "undisturbed")
        say(f"undisturbed: {whole.digest}, {units.duration(whole.seconds)}")
        for seed in seeds:
            say(f"seed {seed}: {faults} faults")
            struck = schedule(seed, scope(prepared), faults)
            outcomes.append(disturbed(prepared, folder / f"seed-{seed}", seed, struck, whole, say))
    finally:
        if all(not outcome.problems for outcome in outcomes):
            shutil.rmtree(folder, ignore_errors=True)
    return _verdict(recipe, overrides, faults, whole, outcomes)


def ready(prepared: Prepared) -> Prepared:
    """With a checkpoint at each quarter of the run at least, which changes no bit of the model, and without an
    alternate, which is for one run alone. RecipeError for a run that faults cannot be tried on.
    """
    recipe = prepared.recipe
    recipe.refuse_shards("samestep chaos")
    if recipe.sync.strategy == "fast":
        raise RecipeError(f"chaos compares bits, but sync.strategy is {recipe.sync.strategy}; use exact")
    if prepared.steps < LEAST:
        raise RecipeError(f"chaos was asked of a run of {prepared.steps} steps, but needs {LEAST}; set steps")
    every = min(recipe.recover.checkpoint_every or prepared.steps, prepared.steps // 4)
    saving = recipe.recover.model_copy(update={"checkpoint_every": every})
    run = recipe.run.model_copy(update={"alternate": None})
    return replace(prepared, recipe=recipe.model_copy(update={"recover": saving, "run": run}))


def scope(prepared: Prepared) -> Scope:
    recipe = prepared.recipe
    ends = recipe.run.silent == "end"
    return Scope(prepared.steps, recipe.run.replicas, recipe.lanes, recipe.recover.checkpoint_every, ends)


def undisturbed(prepared: Prepared, run: Path) -> Summary:
    summary = Summary(str(run))
    begin(prepared, run, [summary.add])
    return summary


def disturbed(
    prepared: Prepared,
    run: Path,
    seed: int,
    faults: Sequence[Fault],
    whole: Summary,
    say: Say,
    first: Life | None = None,
) -> Outcome:
    """The run under those faults, held against the undisturbed one. Its folder is deleted where they are the same.

    first: how the run begins, where not by itself.
    """
    began, summary, error = time.monotonic(), Summary(str(run)), None
    striker = Striker(faults, prepared.steps, lambda said: say(f"seed {seed}, {said}"))
    try:
        _live(first or partial(begin, prepared, run), prepared, run, striker, summary)
    except SamestepError as raised:
        error = str(raised)
    events = counts(journal.read(run / "journal.jsonl"))
    found = _judge(run, summary, whole, error)
    if not found["problems"]:
        shutil.rmtree(run)
    return Outcome(
        seed=seed,
        struck=striker.struck,
        missed=len(striker.due),
        events=events,
        digest=summary.digest,
        seconds=round(time.monotonic() - began, 3),
        run=str(run) if found["problems"] else None,
        **found,
    )


def lines(verdict: Verdict) -> list[str]:
    """For a terminal: a line a run, then the verdict, and how to play again what went wrong."""
    rows = [HEADINGS, *(_row(outcome) for outcome in verdict.outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.rjust, row, widths)) for row in rows]
    problems = [f"seed {o.seed}: {problem}" for o in verdict.outcomes for problem in o.problems]
    kept = [f"kept: {outcome.run}" for outcome in verdict.outcomes if outcome.run]
    return [*table, *problems, *kept, _said(verdict), *(f"replay: {command}" for command in verdict.replay)]


def _row(outcome: Outcome) -> list[str]:
    numbers = [outcome.seed, len(outcome.struck), outcome.missed, *(outcome.events[kind] for kind in COUNTED)]
    rows = ["?" if count is None else str(count) for count in (outcome.lost, outcome.repeated)]
    return [*map(str, numbers), *rows, units.duration(outcome.seconds), "DIFFERENT" if outcome.problems else "same"]


def _said(verdict: Verdict) -> str:
    runs, faults = len(verdict.outcomes), sum(len(outcome.struck) for outcome in verdict.outcomes)
    if verdict.same:
        times = "" if runs == 1 else f"{runs} times "
        return f"{times}the same model: {verdict.digest}, {faults} faults, lost 0, repeated 0"
    wrong = sum(bool(outcome.problems) for outcome in verdict.outcomes)
    return f"NOT the same model in {wrong} of {runs} runs; undisturbed it is {verdict.digest}"


# Lives


def _live(live: Life, prepared: Prepared, run: Path, striker: Striker, summary: Summary) -> None:
    """All lives of a run: it is resumed wherever a fault has ended it."""
    while (replicas := _life(live, prepared, run, striker, summary)) is not None:
        live = partial(go_on, run, replicas)


def _life(live: Life, prepared: Prepared, run: Path, striker: Striker, summary: Summary) -> int | None:
    """None where the run has come to its end, else on how many replicas it is to be resumed."""
    before = len(striker.struck)
    try:
        live([summary.add, striker])
    except Halted as halted:
        striker.rest()  # nobody writes a checkpoint any more
        if halted.fault.kind in DAMAGES:
            striker.tell(damage(run / checkpoint.FOLDER, halted.fault))
        return halted.fault.replicas
    except ClusterError:
        if len(striker.struck) == before:
            raise  # no fault is the cause
        return prepared.recipe.run.replicas
    finally:
        striker.rest()
    return None


def begin(prepared: Prepared, run: Path, hearers: Sequence[Hearer]) -> None:
    """A run's first life."""
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump(prepared.recipe))
    with Journal(run / "journal.jsonl") as written:
        written.write(opening(prepared, time.time()))
        execute(prepared.job("train", run), Local(), written, hearers)


def go_on(run: Path, replicas: int, hearers: Sequence[Hearer]) -> None:
    """Resume a run whose life has ended."""
    before = resume.look(run)
    base = Path(before.opened["base"])
    prepared = prepare(run / "recipe.yaml", [f"run.replicas={replicas}"], lambda line: None, base=base)
    resume.put_in_order(run, before, prepared.alternate)
    with Journal(run / "journal.jsonl", prepared.alternate) as written:
        written.write(resume.resumed(before, prepared, time.time()))
        execute(resume.rest(run, before, prepared), Local(), written, hearers, resume.replayed(before))


# Judging


def _judge(run: Path, found: Summary, whole: Summary, error: str | None) -> dict[str, Any]:
    """What the audit counts, and all that is not as in the undisturbed run."""
    if error:
        return {"lost": None, "repeated": None, "problems": [f"the run ended: {error}"]}
    ledger = audit(run, lambda line: None)
    problems = list(ledger.problems)
    if ledger.lost or ledger.repeated:
        problems.append(f"rows: {ledger.lost} lost, {ledger.repeated} repeated")
    if found.digest != whole.digest:
        problems += compare.lines(compare.compare(Path(whole.run), run))
    return {"lost": ledger.lost, "repeated": ledger.repeated, "problems": problems}


def counts(events: Sequence[Event]) -> dict[str, int]:
    """How often each of COUNTED stands in a journal. A generation of more replicas than the one before has joined some,
    but where the run was resumed in between.
    """
    found = Counter(event["event"] for event in events)
    before = None
    for event in events:
        if event["event"] == "formed":
            found["joined"] += before is not None and event["replicas"] > before
            before = event["replicas"]
        elif event["event"] == "resumed":
            before = None
    return {kind: found[kind] for kind in COUNTED}


def _verdict(recipe: Path, overrides: Sequence[str], faults: int, whole: Summary, outcomes: list[Outcome]) -> Verdict:
    wrong = [outcome.seed for outcome in outcomes if outcome.problems]
    changed = "".join(f" {override}" for override in map(shlex.quote, overrides))
    replay = [f"samestep chaos {recipe}{changed} --seed {seed} --faults {faults}" for seed in wrong]
    return Verdict(not wrong, str(recipe), whole.digest, whole.steps, outcomes, replay)
