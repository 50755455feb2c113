"""samestep verify: whether a recipe gives the same bits at several numbers of replicas on this machine."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from samestep.errors import RecipeError
from samestep.events import Event
from samestep.launch.local import Local
from samestep.recipe.schema import Recipe
from samestep.replica.job import Job
from samestep.verbs.pilot import settled
from samestep.verbs.prepare import prepare
from samestep.verbs.program import program, terms

COMPARED = ("loss", "gradient_norm", "digest")


@dataclass(frozen=True)
class Difference:
    """Where a number of replicas first parts from the first one: what differs, and in which tensors."""

    replicas: int
    step: int
    what: str
    tensors: list[str]


@dataclass(frozen=True)
class Verdict:
    same: bool
    replicas: list[int]
    steps: int
    strategy: str
    differences: list[Difference]
    unrepeatable: list[str]  # tensors whose gradient differed when one micro-batch was computed twice
    digest: str | None  # of the weights after the last step, where all are the same
    holds_for: dict[str, Any] = field(default_factory=dict)


def verify(recipe: Path, overrides: Sequence[str], replicas: str, steps: int, console: Console) -> Verdict:
    """Run the first steps at each number of replicas, and one micro-batch twice. RecipeError for wrong numbers."""
    counts = _counts(replicas)
    changes = [*overrides, f"run.replicas={max(counts)}"]
    prepared, _ = settled(prepare(recipe, changes, console.print), console.print)
    steps = min(steps, prepared.steps)
    with tempfile.TemporaryDirectory(prefix="samestep-verify-") as folder:
        job = replace(prepared.job("train", Path(folder)), stop=steps, finish=False, tensors=True)
        curves = {}
        for count in counts:
            console.print(f"{steps} steps on {count} replicas", highlight=False)
            curves[count] = _events(replace(job, recipe=_with(job.recipe, count)), "step")
        console.print("one micro-batch twice", highlight=False)
        (repeated,) = _events(replace(job, kind="repeat", recipe=_with(job.recipe, 1)), "repeated")
    first = curves[counts[0]]
    differences = [d for count in counts[1:] if (d := difference(count, first, curves[count]))]
    same = not differences and not repeated["differ"]
    return Verdict(
        same,
        counts,
        steps,
        prepared.recipe.sync.strategy,
        differences,
        repeated["differ"],
        first[-1]["digest"] if same else None,
        repeated["kernels"] | {"dtype": prepared.recipe.model.dtype, "compile": prepared.recipe.compute.compile},
    )


def difference(replicas: int, left: Sequence[Event], right: Sequence[Event]) -> Difference | None:
    """The first step in which two curves differ, in what, and the tensors whose digests differ then."""
    for a, b in zip(left, right, strict=True):
        for what in COMPARED:
            if a[what] != b[what]:
                tensors = [name for name, found in a["tensors"].items() if b["tensors"][name] != found]
                return Difference(replicas, a["step"], what, tensors)
    return None


def lines(verdict: Verdict) -> list[str]:
    """The verdict for a terminal."""
    counts = ", ".join(map(str, verdict.replicas))
    said = [f"{'same' if verdict.same else 'DIFFERENT'}: {verdict.steps} steps on {counts} replicas"]
    for d in verdict.differences:
        where = f"; first tensor {d.tensors[0]}, {len(d.tensors)} in all" if d.tensors else ""
        said.append(f"{d.replicas} replicas part from {verdict.replicas[0]} in step {d.step}: the {d.what}{where}")
    if verdict.unrepeatable:
        said.append(f"kernels that do not repeat: the gradients of {', '.join(verdict.unrepeatable)}")
    if verdict.differences and verdict.strategy == "fast":
        said.append("sync.strategy is fast, whose order of additions follows the number of replicas; use exact")
    if verdict.digest:
        said.append(f"weights after step {verdict.steps}: {verdict.digest}")
    return [*said, "this holds for " + ", ".join(f"{key} {value}" for key, value in verdict.holds_for.items())]


def _events(job: Job, kind: str) -> list[Event]:
    found: list[Event] = []
    Local().run(program(job), terms(job.recipe), found.append)
    return [event for event in found if event["event"] == kind]


def _with(recipe: Recipe, replicas: int) -> Recipe:
    """The recipe on another number of replicas, with a digest at every step."""
    run = recipe.run.model_copy(update={"replicas": replicas, "alternate": None})
    return recipe.model_copy(update={"run": run, "recover": recipe.recover.model_copy(update={"digest_every": 1})})


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if len(set(counts)) < 2 or min(counts) < 1:
        raise RecipeError(f"--replicas is {text!r}, but must name two or more different numbers, such as 1,2,3")
    return list(dict.fromkeys(counts))
