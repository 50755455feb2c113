"""samestep digest: which folder is meant, and what is said when it is none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from samestep.errors import DataError
from samestep.recover.digest import of_tensors
from samestep.verbs.digest import digest


def run_folder(folder: Path, tensors: dict[str, torch.Tensor] | None) -> Path:
    folder.mkdir()
    (folder / "journal.jsonl").touch()
    if tensors is not None:
        (folder / "model").mkdir()
        save_file(tensors, folder / "model" / "model.safetensors")
    return folder


def test_a_run_and_its_model_folder_have_the_digest_of_the_tensors(tmp_path: Path) -> None:
    named = {"w": torch.ones(3)}
    run = run_folder(tmp_path / "run", named)
    assert digest(run) == digest(run / "model") == of_tensors(named)


def test_a_run_that_is_not_finished_is_said(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", None)
    with pytest.raises(DataError, match=r"run is a run without model/: it is not finished; resume it"):
        digest(run)


def test_a_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    run_folder(tmp_path / "first-run", None)
    with pytest.raises(DataError, match=r"fist-run does not exist; did you mean first-run\?"):
        digest(tmp_path / "fist-run")
    with pytest.raises(DataError, match="x does not exist; give a run folder or a model folder"):
        digest(tmp_path / "none" / "x")


def test_a_file_and_an_empty_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.safetensors file"):
        digest(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(DataError, match="is a file; give the folder it is in"):
        digest(tmp_path / "model.safetensors")
