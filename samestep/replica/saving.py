"""A model folder that appears whole or not at all."""

import os
import shutil
from pathlib import Path

from samestep.model.task import Task
from samestep.recover import digest


def save(task: Task, folder: Path) -> str:
    """Write the model folder, in place of what is there. Returns its digest, read back from the disk."""
    unfinished, old = (folder.with_name(f".{folder.name}-{what}-{os.getpid()}") for what in ("new", "old"))
    try:
        task.save(unfinished)
        found = digest.of_folder(unfinished)
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return found
