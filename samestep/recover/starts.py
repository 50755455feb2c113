"""Replacements that are owed, and when the next may start. No clock.

A replica that dies as soon as it is there must not be started for ever, so the pause after each start doubles, and
their number has a limit. Neither is for a run of weeks that loses a replica now and then: after a while without a loss
both begin anew.
"""

from collections import deque

from samestep.recover.protocol import Terms

DOUBLINGS = 30  # of the backoff at most: more would overflow a float, and nobody waits that long


class Starts:
    """The n-th start is followed by backoff * 2**(n-1) seconds; n is counted from the last `calm` seconds in which
    nobody was lost or started.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._owed: deque[str] = deque()
        self._given = 0
        self._not_before = self._last = float("-inf")
        self.room: int | None = None  # None: for all
        for _ in range(terms.short):
            self.owe("there was no room for all at the start", self._last)

    def owe(self, reason: str, now: float) -> None:
        """One more, because of a loss at `now`."""
        if not self._owed and now - self._last >= self._terms.calm:
            self._given, self._not_before = 0, now
        self._last = now
        if self._given + len(self._owed) < self._terms.restarts:
            self._owed.append(reason)

    def due(self, now: float) -> list[str]:
        """The reasons of those to start now."""
        reasons = []
        while self._owed and now >= self._not_before and self.room != 0:
            self.room = None if self.room is None else self.room - 1
            reasons.append(self._owed.popleft())
            self._not_before = now + self._terms.backoff * 2.0 ** min(self._given, DOUBLINGS)
            self._given, self._last = self._given + 1, now
        return reasons

    def cancel(self) -> None:
        self._owed.clear()

    def __bool__(self) -> bool:
        return bool(self._owed)
