"""One replica's part in checkpoints: its shard is written on a thread, from a copy, while the steps go on."""

import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from samestep.errors import DataError
from samestep.events import Event
from samestep.recover import checkpoint, shards
from samestep.recover.disk import Disk
from samestep.recover.shards import Part
from samestep.replica.board import Phase
from samestep.replica.islands import Islands
from samestep.replica.job import Job
from samestep.replica.place import Control
from samestep.replica.step import Step
from samestep.replica.watch import Watch
from samestep.sync.legs import passed
from samestep.wire.collective import Collective

TRIES = 3  # in each place


class Checkpoints:
    """At most one shard is under way: a disk that needs longer than the steps between two checkpoints holds them up."""

    def __init__(self, job: Job, step: Step | Islands, watch: Watch, control: Control, disk: Disk) -> None:
        self._job, self._step, self._watch, self._control, self._disk = job, step, watch, control, disk
        self._thread: threading.Thread | None = None
        self.begun = 0  # the step that the run was taken up after: it is on the disk, or follows from the seed

    def enter(self, wire: Collective, generation: int) -> None:
        """Take part in a generation. Shards of several never mix, though they be of one step."""
        self._place = {"generation": generation, "rank": wire.rank, "of": wire.size}

    def resume(self) -> None:
        """Take over the checkpoint that the job names, if any."""
        if self._job.checkpoint is None:
            return
        manifest = checkpoint.read(self._job.checkpoint)
        if manifest.shapes != self._step.shapes:
            raise DataError(f"{self._job.checkpoint} holds another model than the recipe's; resume with its own recipe")
        parts = checkpoint.parts(self._job.checkpoint, manifest)
        self._step.state.restore(list(manifest.shapes), self._step.split.own(parts), manifest.updates)
        self._step.number = self.begun = manifest.step
        self._watch.restore(manifest.state["watch"])

    def after(self, digest: str | None, stop: bool) -> None:
        """To be called after each commit, which has the model `digest` where one was taken; saves where it is due, and
        before the run is stopped.
        """
        since, number = self._step.since, self._step.number
        due = number > 0 and passed(self._job.recipe.recover.checkpoint_every, since, number)
        if stop or (due and number != self.begun):
            self.save(digest)

    def save(self, digest: str | None) -> None:
        """Save the state as it is now. digest: of the model, needed on replica 0."""
        self.wait()
        first = self._place["rank"] == 0
        shared = self._job.recipe.sync.strategy != "fast"  # under fast each replica holds everything
        parts = self._step.state.snapshot(list(self._step.shapes)) if shared or first else {}
        self._step.check()  # what was copied
        parts = self._step.split.joined(parts)
        if self._step.split.inside.rank:
            return
        given = (self._step.number, dict(self._place), parts, self._manifest(digest) if first else None)
        self._thread = threading.Thread(target=self._write, args=given, name="samestep-save")
        self._thread.start()

    def wait(self) -> None:
        """Until the shard under way is written, or given up."""
        if self._thread is not None:
            self._control.phase(self._step.number, Phase.SAVE)  # a disk may let it sleep for long
            self._thread.join()
            self._thread = None

    def _manifest(self, digest: str | None) -> dict[str, Any]:
        """What replica 0 knows of the whole checkpoint."""
        state = self._step.state
        found = {"digest": digest, "shapes": self._step.shapes, "updates": list(state.updates), "kinds": state.saved()}
        return found | {"state": {"watch": self._watch.state()}}

    def _write(
        self, step: int, place: dict[str, int], parts: Mapping[Part, Tensor], manifest: dict[str, Any] | None
    ) -> None:
        self._step.state.copies.wait()
        event: Event = {"event": "shard", "step": step, "folder": None, "file": None, "shard": None}
        for attempt, folder in enumerate((each for each in self._job.places for _ in range(TRIES)), start=1):
            name = f"shard-{place['generation']}-{place['rank']}-{attempt}.safetensors"
            try:
                into = checkpoint.begin(self._disk, folder, step)
                written = asdict(shards.write(self._disk, into / name, parts))
            except OSError as error:
                reason = f"{error.filename or folder}: {error.strerror}"
                self._control.send({"event": "save_failed", "step": step, "attempt": attempt, "reason": reason})
            else:
                event |= {"folder": str(into), "file": name, "shard": written}
                break
        self._control.send(event | place | {"manifest": manifest})
