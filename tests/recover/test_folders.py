"""A folder takes the place of another whole, and what a death left is put in order."""

import os
import shutil
from pathlib import Path

import pytest

from samestep.errors import ClusterError
from samestep.recover.folders import replacing, tidy

DEAD = 2**22 + 1  # no process has that number


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").write_text(text)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_one_takes_the_place_of_the_old(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    with replacing(tmp_path / "a") as new:
        (new / "file").write_text("new")
        assert (tmp_path / "a/file").read_text() == "old"
    assert (tmp_path / "a/file").read_text() == "new" and names(tmp_path) == {"a"}


def test_what_a_death_before_the_swap_left_is_deleted(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    write(tmp_path / f".a-new-{DEAD}", "half")
    tidy(tmp_path / "a")
    assert (tmp_path / "a/file").read_text() == "old" and names(tmp_path) == {"a"}


def test_what_stood_there_comes_back_after_a_death_in_the_swap(tmp_path: Path) -> None:
    write(tmp_path / f".a-old-{DEAD}", "old")
    write(tmp_path / f".a-new-{DEAD}", "new")
    tidy(tmp_path / "a")
    assert (tmp_path / "a/file").read_text() == "old" and names(tmp_path) == {"a"}


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    other = write(tmp_path / f".a-new-{os.getppid()}", "half")
    tidy(tmp_path / "a")
    assert other.exists()


def test_what_stood_there_comes_back_where_the_new_one_cannot_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", "old")
    with pytest.raises(ClusterError, match=r"a cannot be written \(.*No such file.*\); free space on its disk"):
        with replacing(tmp_path / "a") as new:
            monkeypatch.setattr("samestep.recover.disk.Disk.sync", lambda disk, folder: shutil.rmtree(folder))
            assert new.is_dir()
    assert (tmp_path / "a/file").read_text() == "old" and names(tmp_path) == {"a"}
