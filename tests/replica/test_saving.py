import pytest
import torch
from safetensors.torch import save_file

from samestep.errors import ClusterError
from samestep.model.task import Task
from samestep.recover import digest
from samestep.replica.saving import save


def task_that_saves(write):
    return Task(None, None, None, None, None, None, write, None)


def writes(value):
    def write(folder):
        folder.mkdir(exist_ok=True)
        save_file({"weight": torch.full((3,), float(value))}, folder / "model.safetensors")

    return task_that_saves(write)


def fails(folder):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    raise OSError("disk full")


def test_a_model_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ClusterError, match="disk full"):
        save(task_that_saves(fails), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_later_model_takes_the_place_of_an_earlier_one(tmp_path):
    first = save(writes(1), tmp_path / "best")
    second = save(writes(2), tmp_path / "best")
    assert first != second == digest.of_folder(tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_model_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
    first = save(writes(1), tmp_path / "best")
    with pytest.raises(ClusterError, match="disk full"):
        save(task_that_saves(fails), tmp_path / "best")
    assert digest.of_folder(tmp_path / "best") == first
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
