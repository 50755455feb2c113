"""What the keeper makes of shards that arrive, and of a disk that refuses."""

import errno
import os
from collections.abc import Iterator
from dataclasses import asdict
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
    """`os` whose unlink fails for a while."""

    refuse = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def unlink(self, path: Path) -> None:
        if self.refuse:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        path.unlink()


@pytest.fixture
def system() -> Refusing:
    return Refusing()


@pytest.fixture
def keeper(system: Refusing, tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path / "c", 1, Disk(system))
    yield keeper
    keeper.close()


def shard(folder: Path, step: int, rank: int, given_up: bool = False, generation: int = 1) -> Event:
    """What replica `rank` of two tells of its half, once it is written."""
    into, name = checkpoint.begin(Disk(), folder, step), f"shard-{generation}-{rank}"
    part = Part("weights", "a", 4 * rank, 4 * rank + 4)
    written = None if given_up else asdict(shards.write(Disk(), into / name, {part: torch.ones(4)}))
    known = {"digest": "sha256:0", "shapes": SHAPES, "updates": [step], "kinds": ["weights"], "state": {}}
    place = {"step": step, "rank": rank, "of": 2, "generation": generation}
    return place | {"file": None if given_up else name, "shard": written, "manifest": None if rank else known}


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
