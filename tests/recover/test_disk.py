"""A copy is what it is a copy of, or it is not there; the rest of Disk is tried by test_checkpoint.py."""

from pathlib import Path

import pytest

from samestep.recover import disk
from samestep.recover.disk import Disk


@pytest.mark.parametrize("size", [0, 1, 8, 20])
def test_a_copy_of_several_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(disk, "PIECE", 8)
    (tmp_path / "old").write_bytes(bytes(range(size)))
    Disk().copy(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == bytes(range(size))


def test_a_copy_takes_the_place_of_nothing(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        Disk().copy(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new").read_text() == "new"
