"""Where the events of a run go: to the journal, then to all who hear of it; shards to the keeper of checkpoints.

A replica that takes another's place tells again what the step had entailed, so what has been told is dropped here.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from samestep.errors import VerifyError
from samestep.events import Event
from samestep.recover import checkpoint
from samestep.recover.disk import Disk
from samestep.recover.journal import Journal
from samestep.recover.keeper import Keeper
from samestep.replica.job import Job

ONCE = ("step", "evaluated", "best", "stopped_early", "sample", "saved", "not_finite")
Hearer = Callable[[Event], None]


class Logbook:
    """digests: step -> the digest that it had in an earlier life of the run; a step that is computed again must have
    the same. hearers: called with each event that is new, once the journal has it, or keeps it for a disk that refuses.
    """

    def __init__(self, job: Job, journal: Journal, hearers: Sequence[Hearer], digests: Mapping[int, str]) -> None:
        self._job, self._journal, self._hearers, self._digests = job, journal, hearers, dict(digests)
        self._told: set[tuple[str, int | None, str | None]] = set()
        self._last = 0
        self._keeper = Keeper(job.places, job.recipe.recover.keep, Disk())

    def hear(self, event: Event) -> None:
        if event["event"] == "shard":
            self._keeper.shard(event)
        else:
            self._tell(event)
        self._tell_kept()

    def restore(self) -> dict[str, Any]:
        """What all replicas begin again with, where a part of the state was lost: the newest whole checkpoint."""
        self._keeper.settled()
        self._tell_kept()
        found, refused = checkpoint.newest(*self._job.places)
        step = found.step if found else 0
        self._told = {key for key in self._told if key[1] is not None and key[1] <= step}
        event = {"event": "resumed", "time": round(time.time(), 3), "step": step, "last": self._last}
        self._tell(event | {"refused": refused})
        return replace(self._job, checkpoint=found.folder if found else None).dump()

    def close(self) -> None:
        self._keeper.close()
        self._tell_kept()

    def _tell_kept(self) -> None:
        for event in self._keeper.told():
            self._tell(event)

    def _tell(self, event: Event) -> None:
        self._compare(event)
        key = event["event"], event.get("step"), event.get("prompt")
        if key in self._told:
            return
        if event["event"] in ONCE:
            self._told.add(key)
        if event["event"] == "step":
            self._last = event["step"]
        self._journal.write(event)
        for news in (event, *self._journal.told()):
            for hearer in self._hearers:
                hearer(news)

    def _compare(self, event: Event) -> None:
        """Raises VerifyError where a step that was computed again has another digest than the first time."""
        if event["event"] != "step" or "digest" not in event:
            return
        was = self._digests.setdefault(event["step"], event["digest"])
        if was != event["digest"]:
            raise VerifyError(
                f"step {event['step']} was computed again and has another digest ({event['digest']}, before {was}): "
                f"code, data, versions or hardware have changed; samestep verify finds kernels that do not repeat"
            )
