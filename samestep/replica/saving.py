"""A model folder that appears whole or not at all."""

from pathlib import Path

from samestep.model.task import Task
from samestep.recover import digest
from samestep.recover.folders import replacing


def save(task: Task, folder: Path) -> str:
    """Write the model folder, in place of what is there. Returns its digest, read back from the disk.

    Raises ClusterError where the disk refuses; what was there stays.
    """
    with replacing(folder) as unfinished:
        task.save(unfinished)
        return digest.of_folder(unfinished)
