"""samestep compare: whether two runs made the same model, and where they parted."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samestep.errors import DataError
from samestep.recipe.load import load
from samestep.recover import alternate
from samestep.recover.digest import combine, per_tensor
from samestep.recover.stored import Stored, find, pieces
from samestep.verbs.digest import has_model, is_run, model_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEP_KEYS = ("loss", "gradient_norm", "tokens", "digest")
FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}  # numpy's names; BF16 is widened to F32
SHOWN = 10  # tensors on a terminal; --json has them all

Steps = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """A key of a recipe or of a step, or a tensor, and what each run has there; None where it has nothing.

    Of a tensor, dtype and shape; where these are equal its values differ, by `largest` at most (None: the dtype is
    not a float of 16 bits or more, or not all values are finite).
    """

    name: str
    left: Any
    right: Any
    largest: float | None = None


@dataclass(frozen=True)
class Comparison:
    """`same`: both runs are finished and their final parameters are equal, bit for bit, whatever else differs."""

    same: bool
    left: str
    right: str
    left_digest: str | None  # None: not finished
    right_digest: str | None
    equal_steps: int  # of the journals, from the start
    step: int | None  # the first that differs
    at_step: tuple[Difference, ...]  # in what
    recipe: tuple[Difference, ...]  # `section.key`, without `run`
    tensors: tuple[Difference, ...]


def compare(left: Path, right: Path) -> Comparison:
    """Two run folders: their recipes, their journals step by step, their final parameters tensor by tensor.

    Raises:
        DataError: no run folder, or a journal or a model that is missing or damaged.
        RecipeError: a recipe that this version does not read.
    """
    ours, theirs = _tensor_digests(left), _tensor_digests(right)
    left_digest, right_digest = (None if digests is None else combine(digests) for digests in (ours, theirs))
    equal, step, at_step = first_difference(_steps(left), _steps(right))
    return Comparison(
        same=left_digest is not None and left_digest == right_digest,
        left=str(left),
        right=str(right),
        left_digest=left_digest,
        right_digest=right_digest,
        equal_steps=equal,
        step=step,
        at_step=at_step,
        recipe=differences(recipe_of(left), recipe_of(right)),
        tensors=_tensors(left, right, differences(ours, theirs)) if ours is not None and theirs is not None else (),
    )


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The keys whose values differ, those of `left` first."""
    both = [Difference(key, left.get(key), right.get(key)) for key in {**left, **right}]
    return tuple(each for each in both if each.left != each.right)


def first_difference(left: Steps, right: Steps) -> tuple[int, int | None, tuple[Difference, ...]]:
    """How many steps are equal before the first that is not, that step (None: all are equal), and in what it differs.

    STEP_KEYS are compared, the digest where both runs took one. A step that one run lacks differs in `step` alone.
    """
    for count, step in enumerate(sorted(left.keys() | right.keys())):
        if step not in left or step not in right:
            return count, step, (Difference("step", step if step in left else None, step if step in right else None),)
        ours, theirs = left[step], right[step]
        keys = [key for key in STEP_KEYS if key != "digest" or (key in ours and key in theirs)]
        found = differences({key: ours.get(key) for key in keys}, {key: theirs.get(key) for key in keys})
        if found:
            return count, step, found
    return len(left), None, ()


def lines(comparison: Comparison) -> list[str]:
    """For a terminal: the verdict first, then what differs, each as `left | right`."""
    return [
        f"{comparison.left} | {comparison.right}: {_verdict(comparison)}",
        *(f"{key.name}: {_or_none(key.left)} | {_or_none(key.right)}" for key in comparison.recipe),
        journals(comparison),
        *(_tensor(comparison, tensor) for tensor in comparison.tensors[:SHOWN]),
        *([f"... and {len(comparison.tensors) - SHOWN} more tensors"] if len(comparison.tensors) > SHOWN else []),
    ]


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """For --json: plain values, every number finite."""
    return asdict(comparison)


# What a run holds


def _tensor_digests(run: Path) -> dict[str, str] | None:
    """Name -> digest of the final parameters; None where the run is not finished."""
    if run.is_dir() and not is_run(run):
        raise DataError(f"{run} is no run folder, it has no recipe.yaml and no journal.jsonl; compare takes two runs")
    if run.is_dir() and not has_model(run):
        return None
    return per_tensor(model_folder(run))


def _steps(run: Path) -> Steps:
    """Step -> its last event: a resumed run may write a step again."""
    return {event["step"]: event for event in alternate.events_of(run) if event.get("event") == "step"}


def recipe_of(run: Path) -> dict[str, Any]:
    """`section.key` -> value of its recipe, without `run`."""
    return flat(load(run / "recipe.yaml").model_dump(exclude={"run"}))


def flat(resolved: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in resolved.items():
        found |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return found


# Tensors


def _tensors(left: Path, right: Path, found: tuple[Difference, ...]) -> tuple[Difference, ...]:
    """The tensors in `found` with dtypes and shapes in place of digests, and how far apart they are."""
    ours, theirs = (find(model_folder(run)) if found else {} for run in (left, right))
    return tuple(_apart(each.name, ours.get(each.name), theirs.get(each.name)) for each in found)


def _apart(name: str, ours: Stored | None, theirs: Stored | None) -> Difference:
    left, right = (None if each is None else f"{each.dtype} {list(each.shape)}" for each in (ours, theirs))
    if ours is None or theirs is None or left != right:
        return Difference(name, left, right)
    return Difference(name, left, right, _largest(ours, theirs))


def _largest(ours: Stored, theirs: Stored) -> float | None:
    """The largest absolute difference of two tensors of one dtype and shape; None where that is no finite number."""
    import numpy as np

    if ours.dtype not in FLOATS and ours.dtype != "BF16":
        return None
    largest = 0.0
    for a, b in zip(pieces(ours), pieces(theirs), strict=True):
        with np.errstate(invalid="ignore", over="ignore"):
            apart = float(np.max(np.abs(_floats(a, ours.dtype) - _floats(b, ours.dtype))))
        if not math.isfinite(apart):
            return None
        largest = max(largest, apart)
    return largest


def _floats(piece: memoryview, dtype: str) -> "NDArray[np.float64]":
    import numpy as np

    if dtype == "BF16":
        return (np.frombuffer(piece, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(piece, FLOATS[dtype]).astype(np.float64)


# Words


def _verdict(comparison: Comparison) -> str:
    digests = {comparison.left: comparison.left_digest, comparison.right: comparison.right_digest}
    unfinished = [run for run, digest in digests.items() if digest is None]
    if unfinished:
        return f"cannot say, not finished (no model/): {', '.join(unfinished)}"
    if comparison.same:
        return f"the same model, {comparison.left_digest}"
    return f"different models, {comparison.left_digest} | {comparison.right_digest}"


def journals(comparison: Comparison) -> str:
    """How far the steps are equal, and in what they differ then."""
    equal = f"journals: {comparison.equal_steps} steps equal"
    if comparison.step is None:
        return equal
    first = comparison.at_step[0]
    if first.name == "step":
        return f"{equal}, then step {comparison.step} is only in {_holder(comparison, first)}"
    apart = ", ".join(f"{each.name} {_or_none(each.left)} | {_or_none(each.right)}" for each in comparison.at_step)
    return f"{equal}, then step {comparison.step}: {apart}"


def _tensor(comparison: Comparison, tensor: Difference) -> str:
    if tensor.left is None or tensor.right is None:
        return f"{tensor.name}: only in {_holder(comparison, tensor)}"
    if tensor.left != tensor.right:
        return f"{tensor.name}: {tensor.left} | {tensor.right}"
    apart = "other bits" if tensor.largest is None else f"largest difference {tensor.largest:.3g}"
    return f"{tensor.name}: {tensor.left}, {apart}"


def _holder(comparison: Comparison, difference: Difference) -> str:
    return comparison.left if difference.right is None else comparison.right


def _or_none(value: object) -> str:
    return "none" if value is None else str(value)
