"""run.alternate: a folder on another disk, for one run alone. What the run's own disk refuses goes there.

run.txt         the run whose it is
journal.jsonl   lines that the run's journal lacks so far
checkpoints/    as in the run folder
"""

from collections.abc import Iterable
from pathlib import Path

from samestep.errors import RecipeError
from samestep.events import Event
from samestep.recover import journal

OWNER = "run.txt"


def events_of(run: Path) -> list[Event]:
    """The events of the run in that folder, wherever they stand. Raises DataError."""
    path = run / journal.NAME
    return journal.read(path, *named(journal.read(path), run))


def named(events: Iterable[Event], run: Path) -> list[Path]:
    """The alternates that the lives of `run` have had, and that are still its own."""
    found = dict.fromkeys(Path(event["alternate"]) for event in events if event.get("alternate"))
    return [folder for folder in found if owned(folder, run)]


def owned(folder: Path, run: Path) -> bool:
    return owner(folder) == _name(run)


def owner(folder: Path) -> str | None:
    """The path of the run that the folder is of; None where it does not say."""
    try:
        return (folder / OWNER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def refuse_used(folder: Path) -> None:
    """Raises RecipeError if the folder holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = f"holds what is of the run {owner(folder)}" if owner(folder) else "is not an empty folder"
        raise RecipeError(f"run.alternate {folder} {what}; choose another folder, or delete it first")


def take(folder: Path, run: Path) -> None:
    """Make the folder that of `run`. Raises RecipeError where it is another's, or cannot be written."""
    if folder == run.resolve():
        raise RecipeError(f"run.alternate is {folder}, the run's own folder; choose one on another disk")
    if owned(folder, run):
        return
    refuse_used(folder)  # another run's checkpoints would be taken for this one's
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OWNER).write_text(_name(run), encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"run.alternate {folder} cannot be written ({error.strerror}); choose another folder"
        ) from None


def _name(run: Path) -> str:
    return str(run.resolve())
