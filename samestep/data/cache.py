"""Folders named by what goes into them, which appear whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from samestep.errors import DataError

LEFTOVER = 86_400.0  # seconds after which an unfinished folder counts as left by a kill

Setting = str | int | float | None | dict[str, str]


def key(settings: Sequence[Setting]) -> str:
    """SHA-256 of the settings: 64 hex digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A fresh folder to write into, which becomes `folder` when the block ends without an error.

    Killed at any moment it leaves nothing named `folder`; several jobs may write the same one at once, and the first
    to end is kept. Raises DataError where the disk does not take it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="part-", dir=folder.parent) as temporary:
            _sweep(folder.parent, Path(temporary).stat().st_mtime)
            fresh = Path(temporary) / "fresh"  # made with the usual rights; the temporary folder is its owner's alone
            fresh.mkdir()
            yield fresh
            _publish(fresh, folder)
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}; set run.cache to a folder with room"
        ) from error


def _sweep(cache: Path, now: float) -> None:
    """Removes what kills left behind. `now` is the file system's own time, in seconds."""
    for part in cache.glob("part-*"):
        if now - part.stat().st_mtime > LEFTOVER:
            shutil.rmtree(part, ignore_errors=True)


def _publish(fresh: Path, folder: Path) -> None:
    for path in fresh.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a name that survives a power cut must not outlive its bytes
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another job was first, with the same content
            raise
