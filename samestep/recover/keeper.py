"""Commits checkpoints whose shards have all arrived, verifies them and deletes old ones, on a thread of its own.

No failure of a disk ends training: it is told, and the checkpoint before stays. Events go back through a queue, so that
one thread writes the journal.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from samestep.errors import DataError
from samestep.events import Event
from samestep.recover import checkpoint
from samestep.recover.checkpoint import Manifest
from samestep.recover.disk import Disk
from samestep.recover.shards import Shard


class Keeper:
    """places: the run's own folder of checkpoints, then those to turn to where it refuses."""

    def __init__(self, places: Sequence[Path], keep: int, disk: Disk) -> None:
        self._places, self._keep, self._disk = places, keep, disk
        self._open: dict[tuple[int, int], dict[int, Event]] = {}  # (step, generation) -> rank -> what it wrote
        self._told: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[list[Event] | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="samestep-keeper", daemon=True)
        self._thread.start()

    def shard(self, event: Event) -> None:
        """A replica has written its shard, or given it up: `file` is None. With the last one of a step in a generation
        the checkpoint is committed.
        """
        key = event["step"], event["generation"]
        arrived = self._open.setdefault(key, {})
        arrived[event["rank"]] = event
        if len(arrived) == event["of"]:
            self._work.put([arrived[rank] for rank in sorted(arrived)])
            del self._open[key]

    def settled(self) -> None:
        """Wait until all work that was there has been done."""
        idle = threading.Event()
        self._work.put(idle)
        idle.wait()

    def told(self) -> list[Event]:
        """What has happened since the last call."""
        return [self._told.get() for _ in range(self._told.qsize())]

    def close(self) -> None:
        """Wait for the work under way."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if isinstance(work, threading.Event):
                work.set()
            else:
                self._keep_one(work)

    def _keep_one(self, work: list[Event]) -> None:
        step, began = work[0]["step"], time.monotonic()
        try:
            if any(self._whole(place, step) for place in self._places):  # a generation before has saved it too
                self._make_room(step, self._places)
                return
            folder, told = self._commit(work)
        except (OSError, DataError) as error:
            self._make_room(step, self._places)
            self._told.put({"event": "checkpoint_failed", "step": step, "reason": str(error)})
        else:
            self._told.put(told | {"folder": str(folder), "seconds": round(time.monotonic() - began, 3)})
            self._make_room(step, [place for place in self._places if place != folder.parent])
            self._rotate(step)

    def _whole(self, place: Path, step: int) -> bool:
        """Whether that checkpoint is there and whole. One that is not makes way: no file less makes it whole."""
        folder = checkpoint.folder_of(place, step)
        if not folder.is_dir():
            return False
        try:
            checkpoint.verify(folder)
        except DataError:
            with contextlib.suppress(OSError):  # then the disk will not take the new one either
                self._disk.remove(folder)
            return False
        return True

    def _make_room(self, step: int, places: Sequence[Path]) -> None:
        for place in places:
            with contextlib.suppress(OSError):  # rotation tells of it, after the next one that is whole
                self._disk.remove(checkpoint.partial_of(place, step))

    def _commit(self, work: list[Event]) -> tuple[Path, Event]:
        """In the first place that takes it. Raises DataError."""
        lacking = [event["rank"] for event in work if event["file"] is None]
        if lacking:
            raise DataError(f"replica {lacking[0]} could not write its part")
        held = {event["file"]: Shard(**event["shard"]) for event in work}
        manifest = Manifest(step=work[0]["step"], shards=held, **work[0]["manifest"])
        files = [Path(event["folder"]) / event["file"] for event in work]
        places = checkpoint.takers(self._places, [file.parent.parent for file in files])
        refused = [f"{place} has refused a part of it" for place in self._places if place not in places]
        for place in places:
            try:
                folder = self._commit_in(place, manifest, files)
            except OSError as error:
                refused.append(str(error))
            else:
                size = sum(shard.size for shard in held.values())
                told = {"event": "checkpoint", "step": manifest.step, "digest": manifest.digest, "bytes": size}
                return folder, told | ({"refused": "; ".join(refused)} if refused else {})
        raise DataError("; ".join(refused))

    def _commit_in(self, place: Path, manifest: Manifest, files: Sequence[Path]) -> Path:
        into = checkpoint.begin(self._disk, place, manifest.step)
        for file in files:
            if file.parent != into:
                self._disk.copy(_found(file), into / file.name)
        folder = checkpoint.commit(self._disk, place, manifest)
        try:
            checkpoint.verify(folder)
        except DataError:
            checkpoint.discard(self._disk, place, manifest.step)  # else it counts as one of those to keep
            raise
        return folder

    def _rotate(self, newest: int) -> None:
        """Every replica has its part of `newest` behind it, so none writes one of an older step. Those of later steps
        were passed over when the run was taken up, so they are not whole and count for nothing.
        """
        whole = [one for one in checkpoint.saved(*self._places) if one.step <= newest]
        old = checkpoint.surplus(whole, self._keep)
        for place in self._places:  # what one disk does not delete is no reason to fill the other
            try:
                for one in old:
                    if one.folder.parent == place:
                        checkpoint.discard(self._disk, place, one.step)
                checkpoint.clean(self._disk, place, newest)
            except OSError as error:
                self._told.put({"event": "rotation_failed", "step": newest, "reason": str(error)})


def _found(file: Path) -> Path:
    """A shard, also where its folder has got its name and the disk has refused what comes after."""
    named = file.parent.with_suffix("") / file.name
    return file if file.exists() else named
