"""Where a replica's time goes: seconds by phase, told now and then with what it has sent and the memory it has.

One addition a phase, and one event every two seconds at first and every hundredth of the run later: a step is not
slower for it, and a run of a month has some hundreds of them.
"""

import os
import resource
from collections import defaultdict
from pathlib import Path

from samestep.events import Event
from samestep.replica.board import Phase

OFTEN = 2.0  # seconds between two events at least
SHARE = 0.01  # of the time since the first phase, that lies between two later on
STATM = Path("/proc/self/statm")


class Spent:
    """Times are seconds of one clock that does not go back; `now` is when a method is called."""

    def __init__(self, now: float) -> None:
        self._began = self._since = self._told = now
        self._phase = Phase.START
        self._seconds: defaultdict[Phase, float] = defaultdict(float)
        self._step: int | None = None  # the last one that was told of

    def begin(self, step: int) -> None:
        """A generation begins with `step` committed, for one that has just joined or goes back the first of its own."""
        self._step = step if self._step is None else min(self._step, step)

    def enter(self, phase: Phase, now: float) -> None:
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def due(self, now: float) -> bool:
        return now - self._told >= max(OFTEN, SHARE * (now - self._began))

    def tell(self, step: int, now: float) -> Event:
        """Of the steps after the last one that was told of, up to `step`."""
        self.enter(self._phase, now)
        seconds = {phase.name.lower(): round(spent, 6) for phase, spent in self._seconds.items() if spent > 0}
        steps = step - (self._step or 0)
        self._seconds.clear()
        self._told, self._step = now, step
        return {"event": "spent", "step": step, "steps": steps, "seconds": seconds}


def memory() -> Event:
    """Bytes of memory that this process has now, and the most that it has had. Pages that replicas share count in each.

    Some 50 microseconds.
    """
    now = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux brings it up to date now and then
    return {"memory": now, "peak": max(now, most)}
