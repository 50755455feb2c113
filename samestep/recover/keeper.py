"""Commits checkpoints whose shards have all arrived, verifies them and deletes old ones, on a thread of its own.

No failure of a disk ends training: it is told, and the checkpoint before stays. Events go back through a queue, so that
one thread writes the journal.
"""

import contextlib
import queue
import threading
import time
from pathlib import Path

from samestep.errors import DataError
from samestep.events import Event
from samestep.recover import checkpoint
from samestep.recover.checkpoint import Manifest
from samestep.recover.disk import Disk
from samestep.recover.shards import Shard


class Keeper:
    def __init__(self, checkpoints: Path, keep: int, disk: Disk) -> None:
        self._folder, self._keep, self._disk = checkpoints, keep, disk
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
            if self._has(step):  # a generation before has saved it too
                self._disk.remove(checkpoint.partial_of(self._folder, step))
                return
            self._told.put(self._commit(work) | {"seconds": round(time.monotonic() - began, 3)})
        except (OSError, DataError) as error:
            self._give_up(step, str(error))
        else:
            self._rotate(step)

    def _has(self, step: int) -> bool:
        """Whether that checkpoint is there and whole. One that is not makes way: no file less makes it whole."""
        folder = checkpoint.folder_of(self._folder, step)
        if not folder.is_dir():
            return False
        try:
            checkpoint.verify(folder)
        except DataError:
            self._disk.remove(folder)
            return False
        return True

    def _give_up(self, step: int, reason: str) -> None:
        """Make room for the next one."""
        with contextlib.suppress(OSError):
            self._disk.remove(checkpoint.partial_of(self._folder, step))
        self._told.put({"event": "checkpoint_failed", "step": step, "reason": reason})

    def _commit(self, work: list[Event]) -> Event:
        lacking = [event["rank"] for event in work if event["file"] is None]
        if lacking:
            raise DataError(f"replica {lacking[0]} could not write its part")
        first = work[0]["manifest"]
        held = {event["file"]: Shard(**event["shard"]) for event in work}
        manifest = Manifest(step=work[0]["step"], shards=held, **first)
        folder = checkpoint.commit(self._disk, self._folder, manifest)
        try:
            checkpoint.verify(folder)
        except DataError:
            checkpoint.discard(self._disk, self._folder, manifest.step)  # else it counts as one of those to keep
            raise
        size = sum(shard.size for shard in held.values())
        return {"event": "checkpoint", "step": manifest.step, "digest": manifest.digest, "bytes": size}

    def _rotate(self, newest: int) -> None:
        """Every replica has its part of `newest` behind it, so none writes one of an older step. Those of later steps
        were passed over when the run was taken up, so they are not whole and count for nothing.
        """
        whole = [step for step in checkpoint.steps(self._folder) if step <= newest]
        try:
            for step in checkpoint.surplus(whole, self._keep):
                checkpoint.discard(self._disk, self._folder, step)
            checkpoint.clean(self._disk, self._folder, newest)
        except OSError as error:
            self._told.put({"event": "rotation_failed", "step": newest, "reason": str(error)})
