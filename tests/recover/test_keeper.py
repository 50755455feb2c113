"""What the keeper makes of shards that arrive, and of a disk that refuses."""

import errno
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from samestep.events import Event
from samestep.recover import checkpoint, shards
from samestep.recover.disk import Disk
from samestep.recover.keeper import Keeper
from samestep.recover.shards import Part

SHAPES = {"a": [8]}


class Refusing:
    """`os` whose unlink fails for a while, and whose calls named in `fail` do on what is below `at`."""

    refuse = False
    fail: tuple[str, ...] = ()

    def __init__(self, at: Path) -> None:
        self._at = at

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, name) if name in self.fail else getattr(os, name)

    def unlink(self, path: Path) -> None:
        if self.refuse:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        self._call("unlink", path)

    def _call(self, name: str, target: Path | int, *rest: Any) -> Any:
        path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target
        if name in self.fail and path.is_relative_to(self._at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return getattr(os, name)(target, *rest)


@pytest.fixture
def system(tmp_path: Path) -> Refusing:
    return Refusing(tmp_path / "c")


@pytest.fixture
def keeper(system: Refusing, tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper([tmp_path / "c"], 1, Disk(system))
    yield keeper
    keeper.close()


def shard(folder: Path, step: int, rank: int, given_up: bool = False, generation: int = 1) -> Event:
    """What replica `rank` of two tells of its half, once it is written."""
    into, name = checkpoint.begin(Disk(), folder, step), f"shard-{generation}-{rank}"
    part = Part("weights", "a", 4 * rank, 4 * rank + 4)
    written = None if given_up else asdict(shards.write(Disk(), into / name, {part: torch.ones(4)}))
    known = {"digest": "sha256:0", "shapes": SHAPES, "updates": [step], "kinds": ["weights"], "state": {}}
    place = {"step": step, "rank": rank, "of": 2, "generation": generation}
    where = {"folder": None, "file": None} if given_up else {"folder": str(into), "file": name}
    return place | where | {"shard": written, "manifest": None if rank else known}


def told(keeper: Keeper) -> list[tuple[str, int]]:
    keeper.settled()
    return [(event["event"], event["step"]) for event in keeper.told()]


def test_a_shard_that_was_given_up_fails_the_checkpoint_and_leaves_room(keeper: Keeper, tmp_path: Path) -> None:
    keeper.shard(shard(tmp_path / "c", 1, 0))
    keeper.shard(shard(tmp_path / "c", 1, 1, given_up=True))
    keeper.settled()
    (event,) = keeper.told()
    assert event == {"event": "checkpoint_failed", "step": 1, "reason": "replica 1 could not write its part"}
    assert list((tmp_path / "c").iterdir()) == []


def test_one_that_cannot_be_read_back_goes_and_the_one_before_it_stays(keeper: Keeper, tmp_path: Path) -> None:
    for rank in range(2):
        keeper.shard(shard(tmp_path / "c", 1, rank))
    keeper.settled()
    last = [shard(tmp_path / "c", 2, rank) for rank in range(2)]
    file = checkpoint.partial_of(tmp_path / "c", 2) / "shard-1-0"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    for event in last:
        keeper.shard(event)
    assert told(keeper) == [("checkpoint", 1), ("checkpoint_failed", 2)]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-1"]


def test_shards_of_two_generations_never_make_one(keeper: Keeper, tmp_path: Path) -> None:
    keeper.shard(shard(tmp_path / "c", 1, 0))
    keeper.shard(shard(tmp_path / "c", 1, 1, generation=2))
    assert told(keeper) == []
    keeper.shard(shard(tmp_path / "c", 1, 0, generation=2))
    assert told(keeper) == [("checkpoint", 1)]
    assert checkpoint.read(tmp_path / "c/step-1").shards.keys() == {"shard-2-0", "shard-2-1"}


def test_an_old_one_that_cannot_be_deleted_is_told_apart_and_goes_later(
    keeper: Keeper, system: Refusing, tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        system.refuse = step == 2
        for rank in range(2):
            keeper.shard(shard(tmp_path / "c", step, rank))
        expected = [("checkpoint", step)] + [("rotation_failed", step)] * system.refuse
        assert told(keeper) == expected
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-3"]


def save(keeper: Keeper, folder: Path, step: int) -> None:
    for rank in range(2):
        keeper.shard(shard(folder, step, rank))


def tear(checkpoint_folder: Path) -> None:
    os.truncate(checkpoint_folder / "shard-1-0", 9)


def test_a_damaged_one_makes_way_for_the_same_step_saved_again(keeper: Keeper, tmp_path: Path) -> None:
    save(keeper, tmp_path / "c", 2)
    assert told(keeper) == [("checkpoint", 2)]
    tear(tmp_path / "c" / "step-2")
    save(keeper, tmp_path / "c", 2)
    assert told(keeper) == [("checkpoint", 2)]
    assert checkpoint.newest(tmp_path / "c")[0] is not None


def test_a_whole_one_stays_where_the_same_step_is_saved_again(keeper: Keeper, tmp_path: Path) -> None:
    save(keeper, tmp_path / "c", 2)
    assert told(keeper) == [("checkpoint", 2)]
    save(keeper, tmp_path / "c", 2)
    assert told(keeper) == []
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-2"]


def test_a_damaged_one_of_a_later_step_costs_no_whole_one_its_place(keeper: Keeper, tmp_path: Path) -> None:
    save(keeper, tmp_path / "c", 4)
    keeper.settled()
    tear(tmp_path / "c" / "step-4")
    save(keeper, tmp_path / "c", 2)
    keeper.settled()
    found, _ = checkpoint.newest(tmp_path / "c")
    assert found is not None and found.step == 2


@pytest.fixture
def two(system: Refusing, tmp_path: Path) -> Iterator[Keeper]:
    """With an alternate."""
    (tmp_path / "other").mkdir()
    keeper = Keeper([tmp_path / "c", tmp_path / "other/c"], 2, Disk(system))
    yield keeper
    keeper.close()


def there(*places: Path) -> list[list[str]]:
    return [sorted(path.name for path in place.iterdir()) if place.exists() else [] for place in places]


def test_an_alternate_is_not_touched_while_the_run_s_own_disk_takes_all(two: Keeper, tmp_path: Path) -> None:
    save(two, tmp_path / "c", 1)
    two.settled()
    (event,) = two.told()
    assert (
        event["folder"] == str(tmp_path / "c/step-1") and "refused" not in event and there(tmp_path / "other") == [[]]
    )


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_what_the_run_s_own_disk_does_not_commit_is_copied_to_the_alternate(
    two: Keeper, system: Refusing, tmp_path: Path, call: str
) -> None:
    shards = [shard(tmp_path / "c", 1, rank) for rank in range(2)]
    system.fail = (call,)
    for event in shards:
        two.shard(event)
    two.settled()
    (event,) = two.told()
    assert (event["event"], event["folder"]) == ("checkpoint", str(tmp_path / "other/c/step-1"))
    assert "No space left on device" in event["refused"] and str(tmp_path / "c") in event["refused"]
    found, refused = checkpoint.newest(tmp_path / "other/c")
    assert found is not None and not refused


def test_a_disk_that_refuses_after_the_name_is_given_has_it_in_the_alternate_too(
    two: Keeper, system: Refusing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [shard(tmp_path / "c", 1, rank) for rank in range(2)]

    def rename(old: Path, new: Path) -> None:
        old.rename(new)
        system.fail = ("fsync",)

    monkeypatch.setattr(system, "rename", rename, raising=False)
    for event in shards:
        two.shard(event)
    assert told(two) == [("checkpoint", 1)]
    assert there(tmp_path / "c", tmp_path / "other/c") == [["step-1"], ["step-1"]]
    assert checkpoint.newest(tmp_path / "other/c")[0] is not None


def test_shards_in_both_places_are_brought_together_in_the_alternate_and_none_is_left(
    two: Keeper, tmp_path: Path
) -> None:
    two.shard(shard(tmp_path / "c", 1, 0))
    two.shard(shard(tmp_path / "other/c", 1, 1))
    two.settled()
    (event,) = two.told()
    assert event["refused"] == f"{tmp_path / 'c'} has refused a part of it"
    assert there(tmp_path / "c", tmp_path / "other/c") == [[], ["step-1"]]
    assert checkpoint.verify(tmp_path / "other/c/step-1").shards.keys() == {"shard-1-0", "shard-1-1"}


def test_a_shard_that_is_damaged_on_its_way_is_found_and_the_one_before_stays(two: Keeper, tmp_path: Path) -> None:
    save(two, tmp_path / "c", 1)
    first, second = shard(tmp_path / "c", 2, 0), shard(tmp_path / "other/c", 2, 1)
    file = checkpoint.partial_of(tmp_path / "c", 2) / "shard-1-0"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    two.shard(first)
    two.shard(second)
    assert told(two) == [("checkpoint", 1), ("checkpoint_failed", 2)]
    assert there(tmp_path / "c", tmp_path / "other/c") == [["step-1"], []]


def test_where_both_disks_refuse_both_reasons_are_told(two: Keeper, system: Refusing, tmp_path: Path) -> None:
    shards = [shard(tmp_path / "c", 1, rank) for rank in range(2)]
    system.fail, system._at = ("write",), tmp_path
    for event in shards:
        two.shard(event)
    two.settled()
    (event,) = two.told()
    assert event["event"] == "checkpoint_failed"
    assert all(f"{tmp_path / place}" in event["reason"] for place in ("c/step-1", "other/c/step-1"))
    assert there(tmp_path / "c", tmp_path / "other/c") == [[], []]


def test_the_newest_of_both_places_are_kept(two: Keeper, tmp_path: Path) -> None:
    for step, place in ((1, "c"), (2, "other/c"), (3, "c"), (4, "other/c"), (5, "other/c")):
        save(two, tmp_path / place, step)
        two.settled()
    assert there(tmp_path / "c", tmp_path / "other/c") == [[], ["step-4", "step-5"]]
    save(two, tmp_path / "c", 6)
    two.settled()
    assert there(tmp_path / "c", tmp_path / "other/c") == [["step-6"], ["step-5"]]


def test_a_disk_that_deletes_nothing_is_no_reason_to_fill_the_other(
    two: Keeper, system: Refusing, tmp_path: Path
) -> None:
    save(two, tmp_path / "c", 1)
    two.settled()
    system.fail = ("rename",)
    for step in (2, 3, 4):
        save(two, tmp_path / "other/c", step)
    two.settled()
    assert there(tmp_path / "c", tmp_path / "other/c") == [["step-1"], ["step-3", "step-4"]]
    assert [event["step"] for event in two.told() if event["event"] == "rotation_failed"] == [3, 4]


def test_one_that_a_generation_before_has_saved_in_the_alternate_is_not_saved_again(
    two: Keeper, tmp_path: Path
) -> None:
    save(two, tmp_path / "other/c", 1)
    save(two, tmp_path / "c", 1)
    assert told(two) == [("checkpoint", 1)]
    assert there(tmp_path / "c", tmp_path / "other/c") == [[], ["step-1"]]


def test_a_damaged_one_that_cannot_be_deleted_is_saved_again_in_the_alternate(
    two: Keeper, system: Refusing, tmp_path: Path
) -> None:
    save(two, tmp_path / "c", 1)
    two.settled()
    tear(tmp_path / "c/step-1")
    shards = [shard(tmp_path / "c", 1, rank) for rank in range(2)]
    system.fail = ("unlink",)
    for event in shards:
        two.shard(event)
    two.settled()
    found, _ = checkpoint.newest(tmp_path / "c", tmp_path / "other/c")
    assert found is not None and found.folder == tmp_path / "other/c/step-1"
