import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samestep.data.cache import LEFTOVER, key, published
from samestep.errors import DataError


def test_a_key_follows_from_the_settings_alone() -> None:
    assert key(["a", 1, None, {"x": "1", "y": "2"}]) == key(["a", 1, None, {"y": "2", "x": "1"}])
    assert len({key(["ab"]), key(["a", "b"]), key(["a", None]), key([1]), key(["1"])}) == 5
    assert len(key([])) == 64


def test_a_folder_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "name"
    with published(folder) as fresh:
        (fresh / "file").write_text("content")
        assert not folder.exists()
    assert (folder / "file").read_text() == "content"
    assert list(folder.parent.iterdir()) == [folder]


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), published(tmp_path / "name") as fresh:
        (fresh / "file").write_text("content")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_said_in_one_line(tmp_path: Path) -> None:
    said = r"cannot write .*name: No space left on device; set run.cache to a folder with room"
    with pytest.raises(DataError, match=said), published(tmp_path / "name"):
        raise OSError(28, "No space left on device")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"set run\.cache"), published(tmp_path / "file" / "name"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_two_jobs_that_write_the_same_folder_the_first_is_kept(tmp_path: Path) -> None:
    with published(tmp_path / "name") as slow:
        (slow / "file").write_text("slow")
        with published(tmp_path / "name") as fast:
            (fast / "file").write_text("fast")
    assert (tmp_path / "name" / "file").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_old_leftovers_of_kills_are_removed_and_fresh_ones_left_to_their_owner(tmp_path: Path) -> None:
    old, new = tmp_path / "part-old", tmp_path / "part-new"
    for leftover in (old, new):
        (leftover / "fresh").mkdir(parents=True)
    os.utime(old, (0, time.time() - 2 * LEFTOVER))
    with published(tmp_path / "name"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name", "part-new"]


def test_a_kill_leaves_no_folder_that_counts_as_whole(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from samestep.data.cache import published\n"
        "with published(Path(sys.argv[1])) as fresh:\n"
        "    (fresh / 'file').write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "name"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name.startswith("part-") for path in tmp_path.iterdir()] == [True]
