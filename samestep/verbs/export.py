"""samestep export: a run's model as a folder that others load, checked by loading it as they do."""

import contextlib
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from samestep.errors import DataError, RecipeError, VerifyError
from samestep.model import export as models
from samestep.model.folder import COMPANIONS, TOKENIZER, write_json
from samestep.recipe.load import load as load_recipe
from samestep.recipe.schema import Recipe
from samestep.recover import alternate
from samestep.recover.digest import of_folder
from samestep.recover.folders import replacing
from samestep.report.card import Facts, card
from samestep.verbs.digest import is_run, model_folder

BOUNDS = {"model": 1e-6, "adapter": 1e-6, "merged": 1e-4}  # of the logits, over the largest of the live model's
LIBRARIES = ("samestep", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Exported:
    """`kind`: model, adapter or merged. `logits`: the largest difference over the largest logit of the live model."""

    to: str
    kind: str
    base: str | None
    files: tuple[str, ...]
    tensors: int
    logits: float
    digest: str  # of the tensors in the folder


@dataclass(frozen=True)
class _Run:
    """What is exported. `base`: the folder of the base model of an adapter."""

    model: Path
    recipe: Recipe
    events: list[dict[str, Any]]
    base: Path | None

    @property
    def reward(self) -> bool:
        return self.recipe.objective.kind == "reward"

    @property
    def origin(self) -> str | None:
        """The base model as its users would name it."""
        return self.recipe.model.name or self.recipe.model.path


def export(run: Path, to: Path, merge: bool) -> Exported:
    """Write the model of the run folder `run` to `to`, which appears whole and checked, or not at all.

    With `merge` LoRA is folded into the base model, in float32.

    Raises:
        ClusterError: `to` cannot be written.
        RecipeError: `to` holds something, nothing to merge, or a base model that is not there.
        DataError: no run, a run that is not finished, or a damaged one.
        VerifyError: what is loaded from the new folder is not the run's model; names the tensor.
    """
    source = _read(run)
    kind = _kind(source, run, merge)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RecipeError(f"--to asks for {to}, which is not an empty folder; choose another, or delete it first")
    live = models.load(source.model, reward=source.reward, base=source.base)
    tokenizer = models.load_tokenizer(source.model)
    expected = models.probe_logits(live, tokenizer)  # before a merge, which changes the model
    with replacing(to) as folder:
        live = _write(source, kind, live, folder)
        (folder / "README.md").write_text(card(_facts(source, kind, to)), encoding="utf-8")
        tensors, difference = _check(source, kind, live, expected, folder)
        files = tuple(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))
        found = of_folder(folder)
    return Exported(str(to), kind, source.origin, files, tensors, difference, found)


def lines(exported: Exported) -> list[str]:
    """The result for a terminal."""
    what = {"model": "whole model", "adapter": f"LoRA adapter of {exported.base}", "merged": "LoRA merged"}
    difference = "equal" if exported.logits == 0 else f"{exported.logits:.1e} of the largest apart"
    return [
        f"{exported.to}: {what[exported.kind]}, {len(exported.files)} files ({', '.join(exported.files)})",
        f"loaded again: {exported.tensors} tensors equal, bit for bit; logits of a probe text {difference}",
        exported.digest,
    ]


def _read(run: Path) -> _Run:
    model = model_folder(run)
    if not is_run(run):
        raise DataError(f"{run} is no run folder (it has no journal.jsonl); give the folder that train wrote")
    recipe, events = load_recipe(run / "recipe.yaml"), alternate.events_of(run)
    saved, found = [event["digest"] for event in events if event["event"] == "saved"], of_folder(model)
    if not saved:
        raise DataError(f"{run} says nowhere that its model was saved: it is not finished; resume it")
    if saved[-1] != found:
        raise DataError(f"{model} has the digest {found}, but the run saved {saved[-1]}; restore the folder")
    return _Run(model, recipe, events, models.base_folder(model) if models.is_adapter(model) else None)


def _kind(source: _Run, run: Path, merge: bool) -> str:
    if source.base is not None:
        return "merged" if merge else "adapter"
    if merge:
        raise RecipeError(f"--merge folds LoRA in, but {run} trained all weights; leave --merge out")
    return "model"


def _write(source: _Run, kind: str, live: Any, folder: Path) -> Any:
    """Write all but the card; returns the model that the folder should hold."""
    if kind != "merged":
        for file in sorted(filter(Path.is_file, source.model.iterdir())):
            shutil.copyfile(file, folder / file.name)
        _name_base(source, folder)
        return live
    merged = models.merge(live)
    merged.save_pretrained(folder)
    for name in (TOKENIZER, *COMPANIONS):
        if (source.model / name).is_file():
            shutil.copyfile(source.model / name, folder / name)
    return merged


def _name_base(source: _Run, folder: Path) -> None:
    """An adapter of a hub model names it as the hub does: a folder of this machine would help nobody else."""
    if source.base is not None and source.recipe.model.name is not None:
        config = json.loads((folder / models.ADAPTER).read_text(encoding="utf-8"))
        write_json(folder / models.ADAPTER, {**config, models.BASE: source.recipe.model.name})


def _facts(source: _Run, kind: str, to: Path) -> Facts:
    return Facts(to.resolve().name, kind, source.origin, source.recipe, source.events, _versions())


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):  # peft is only there where adapters are
            found[name] = version(name)
    return found


def _check(source: _Run, kind: str, live: Any, expected: Any, folder: Path) -> tuple[int, float]:
    """The number of tensors and how far the logits are off. VerifyError where `folder` is not `live`."""
    base = source.base if kind == "adapter" else None
    written = models.load(folder, reward=source.reward, base=base)
    wrong = models.first_difference(models.tensors(live), models.tensors(written))
    if wrong:
        raise VerifyError(f"what was written for --to is not the run's model: {wrong}; check the disk and export again")
    difference = models.relative_difference(expected, models.probe_logits(written, models.load_tokenizer(folder)))
    if difference > BOUNDS[kind]:
        raise VerifyError(
            f"the logits of what was written are {difference:.1e} of the largest off the run's model, more than "
            f"{BOUNDS[kind]:.0e}; " + ("export without --merge" if kind == "merged" else "check the disk, export again")
        )
    return len(models.tensors(written)), difference
