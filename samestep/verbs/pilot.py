"""samestep pilot: what a step would take on these machines under each strategy and wire format, and which to take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from samestep import units
from samestep.errors import RecipeError
from samestep.events import Event
from samestep.launch.local import Local
from samestep.plan.choose import Prediction, Shape, chosen, predictions
from samestep.plan.timing import Measured
from samestep.recipe.load import dump, load
from samestep.recipe.schema import Recipe
from samestep.replica.job import Job
from samestep.sync.slices import layout
from samestep.verbs import calibration
from samestep.verbs.prepare import Prepared, Say, prepare
from samestep.verbs.program import program, terms
from samestep.verbs.room import held


@dataclass(frozen=True)
class Pilot:
    replicas: int
    measured: dict[str, Any]
    predictions: list[Prediction]
    choice: Prediction
    reason: str


def pilot(recipe: Path, overrides: Sequence[str], to: Path | None, say: Say) -> Pilot:
    """Measure on the replicas of the recipe, and predict. to: a new file for the recipe with what was chosen."""
    if to is not None and to.exists():
        raise RecipeError(f"--to {to} is there already; give a new file, or delete it first")
    prepared = prepare(recipe, overrides, say)
    prepared.recipe.refuse_shards("samestep pilot")
    measured = measure(prepared, say)
    found = decided(prepared.recipe, measured)
    calibration.keep(load(recipe, overrides), prepared.base, measured, prepared.rows)
    if to is not None:
        to.write_text(dump(with_choice(prepared.recipe, found)))
    return found


def settled(prepared: Prepared, say: Say) -> tuple[Prepared, Pilot | None]:
    """A recipe whose strategy is `auto`, with the one that a pilot chooses; any other as it is."""
    if prepared.recipe.sync.strategy != "auto":
        return prepared, None
    found = decided(prepared.recipe, measure(prepared, say))
    for line in lines(found):
        say(line)
    recipe = with_choice(prepared.recipe, found)
    vocabulary = max(corpus.vocabulary for corpus in prepared.corpora.values())
    return replace(prepared, recipe=recipe, holding=held(recipe, prepared.base, vocabulary)), found


def with_choice(recipe: Recipe, found: Pilot) -> Recipe:
    choice = {"strategy": found.choice.candidate.strategy, "wire": found.choice.candidate.wire, "weights": None}
    return recipe.model_copy(update={"sync": recipe.sync.model_copy(update=choice)})


def measure(prepared: Prepared, say: Say) -> Event:
    """What the replicas have measured together, see replica/pilot.py."""
    say(f"measuring this network and these machines on {prepared.recipe.run.replicas} replicas")
    found: list[Event] = []
    with TemporaryDirectory() as folder:
        job = _settled(prepared.job("pilot", Path(folder)))
        Local().run(program(job), terms(job.recipe), found.append)
    return next(event for event in found if event["event"] == "measured")


def _settled(job: Job) -> Job:
    """Real steps need a strategy: where that is what is to be found out, exact."""
    sync = job.recipe.sync
    if sync.strategy != "auto":
        return job
    return replace(job, recipe=job.recipe.model_copy(update={"sync": sync.model_copy(update={"strategy": "exact"})}))


def decided(recipe: Recipe, event: Event) -> Pilot:
    fields = {key: event[key] for key in ("replicas", "forward", "backward", "update", "pass_", "coding", "exchange")}
    found = predictions(Measured(**fields), layout(event["sizes"], recipe.lanes), shape_of(recipe))
    choice, reason = chosen(found)
    return Pilot(event["replicas"], fields, found, choice, reason)


def shape_of(recipe: Recipe) -> Shape:
    terms = recipe.sync.diloco
    fits = recipe.lanes % terms.islands == 0
    return Shape(recipe.lanes, recipe.batch.accumulate, terms.islands if fits else 0, terms.every, terms.overlap)


def as_dict(found: Pilot) -> dict[str, Any]:
    return asdict(found)


def lines(found: Pilot) -> list[str]:
    """A table for a terminal."""
    rows = [f"{'strategy':<9} {'wire':<9} {'a step':>9} {'sent a step':>12}  spent on"]
    for each in found.predictions:
        spent = sorted(each.parts.items(), key=lambda part: -part[1])
        said = ", ".join(f"{part} {units.duration(seconds)}" for part, seconds in spent[:3] if seconds)
        mark = "*" if each is found.choice else " "
        sent = units.size(round(each.bytes_sent))
        strategy, wire, _ = each.candidate
        rows.append(f"{strategy:<9} {wire:<9} {each.seconds:>8.3f}s {sent:>12} {mark}{said}")
    strategy, wire, _ = found.choice.candidate
    return [*rows, f"sync.strategy={strategy} sync.wire={wire}: {found.reason}"]
