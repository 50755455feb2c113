"""A run's alternate is its own, and what stands there belongs to the run."""

import errno
import os
from pathlib import Path

import pytest

from samestep.errors import RecipeError
from samestep.recover import alternate
from samestep.recover.journal import NAME, encode


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_one_that_is_not_there_is_made_and_says_whose_it_is(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    alternate.refuse_used(folder)
    assert not alternate.owned(folder, run)
    alternate.take(folder, run)
    assert alternate.owned(folder, run) and alternate.owner(folder) == str(run)


def test_one_that_holds_anything_is_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "file").touch()
    for refuse in (lambda: alternate.refuse_used(folder), lambda: alternate.take(folder, run)):
        with pytest.raises(RecipeError, match=r"run\.alternate .*other is not an empty folder; choose another folder"):
            refuse()


def test_another_run_s_is_refused_and_that_run_named(run: Path, tmp_path: Path) -> None:
    alternate.take(tmp_path / "a", tmp_path / "first")
    with pytest.raises(RecipeError, match=r"holds what is of the run .*/first; choose another folder"):
        alternate.take(tmp_path / "a", run)


def test_a_run_takes_its_own_again_though_its_disk_be_full(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alternate.take(tmp_path / "a", run)
    (tmp_path / "a" / NAME).touch()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    alternate.take(tmp_path / "a", run)
    with pytest.raises(RecipeError, match=r"b cannot be written \(No space left on device\); choose another folder"):
        alternate.take(tmp_path / "b", run)


def test_the_run_folder_is_no_alternate(run: Path) -> None:
    with pytest.raises(RecipeError, match="the run's own folder; choose one on another disk"):
        alternate.take(run, run)


def test_the_events_of_a_run_are_those_of_its_journal_and_of_the_alternates_that_it_names(
    run: Path, tmp_path: Path
) -> None:
    ours, gone, theirs = (tmp_path / name for name in ("ours", "gone", "theirs"))
    events = [{"event": "opened", "alternate": None}]
    events += [{"event": "resumed", "alternate": str(folder)} for folder in (gone, theirs, ours)]
    (run / NAME).write_bytes(b"".join(map(encode, events)))
    for folder, owner in ((ours, run), (theirs, tmp_path / "another")):
        alternate.take(folder, owner)
        (folder / NAME).write_bytes(encode({"event": folder.name}))
    assert alternate.named(events, run) == [ours]
    assert alternate.events_of(run) == [*events, {"event": "ours"}]
