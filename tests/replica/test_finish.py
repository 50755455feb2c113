from pathlib import Path

import pytest

from samestep.model.task import Task
from samestep.replica.finish import save


def task_that_saves(write):
    return Task(None, None, write, None)


def test_a_model_folder_appears_whole_or_not_at_all(tmp_path):
    def fails(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(task_that_saves(fails), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
