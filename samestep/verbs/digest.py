"""samestep digest: one line that two people compare to know that they have the same model."""

from pathlib import Path

from samestep.errors import DataError
from samestep.recipe.load import did_you_mean
from samestep.recover.digest import of_folder


def digest(target: Path) -> str:
    """`sha256:<64 hex>` of the final parameters in `target`, a run folder or a model folder.

    Raises:
        DataError: no such folder, a run that is not finished, or safetensors that cannot be read.
    """
    return of_folder(model_folder(target))


def model_folder(target: Path) -> Path:
    """`target/model` where `target` is a run folder, else `target`.

    Raises:
        DataError: no such folder, or a run without a model yet.
    """
    if not target.is_dir():
        raise DataError(f"{target} {_wrong(target)}")
    if not is_run(target):
        return target
    if not has_model(target):
        raise DataError(f"{target} is a run without model/: it is not finished; resume it, or give another run")
    return target / "model"


def is_run(folder: Path) -> bool:
    return (folder / "journal.jsonl").is_file() or (folder / "recipe.yaml").is_file()


def has_model(run: Path) -> bool:
    return (run / "model").is_dir()


def _wrong(target: Path) -> str:
    if target.exists():
        return f"is a file; give the folder it is in, {target.parent}"
    beside = [path.name for path in target.parent.iterdir()] if target.parent.is_dir() else []
    return f"does not exist{did_you_mean(target.name, beside) or '; give a run folder or a model folder'}"
