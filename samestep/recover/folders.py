"""A folder that appears whole and durable in the place of another, or not at all.

.best-new-71    being written by process 71, or left by its death
.best-old-71    what stood there before, on its way out
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from samestep.errors import ClusterError
from samestep.recover.disk import Disk


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write in, which takes the place of `folder` at the end. After an error `folder` is as it was.

    Raises ClusterError where the disk refuses.
    """
    new, old = (folder.with_name(f".{folder.name}-{what}-{os.getpid()}") for what in ("new", "old"))
    try:
        tidy(folder)
        new.mkdir(parents=True)
        yield new
        _swap(Disk(), new, folder, old)
    except (OSError, SafetensorError) as error:
        raise ClusterError(f"{folder} cannot be written ({error}); free space on its disk, then go on") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Delete what processes that died while they wrote `folder` left beside it, or put back what stood there before."""
    for what in ("old", "new"):
        for left in sorted(folder.parent.glob(f".{folder.name}-{what}-*")):
            if _alive(left.name.rpartition("-")[2]):
                continue
            if what == "old" and not folder.exists():
                left.rename(folder)
            else:
                shutil.rmtree(left)


def _swap(disk: Disk, new: Path, folder: Path, old: Path) -> None:
    disk.sync(new)
    if folder.exists():
        folder.rename(old)
    try:
        disk.rename(new, folder)
    except OSError:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


def _alive(process: str) -> bool:
    return process.isdecimal() and Path("/proc", process).exists()
