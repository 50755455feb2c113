"""Watching replicas that say nothing: what the board and Linux tell of them, judged once a second."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from samestep.launch import vitals
from samestep.launch.vitals import Vitals
from samestep.recover import silence
from samestep.recover.silence import Finding, Look, Patience, View
from samestep.replica.board import Board


class Seat(NamedTuple):
    """slot: on the board. pid: None for a process elsewhere. told: what has been heard of such a one last."""

    slot: int
    pid: int | None
    told: Vitals | None = None


class Lookout:
    """No thread, no clock: its owner calls `look`, and `forget` when replicas come or go.

    board: None where others look at replicas, on hosts of their own, and `judge` is called with what they saw.
    """

    def __init__(self, board: Board | None, patience: Patience | None = None) -> None:
        self._board, self._patience = board, patience or Patience()
        self._view: View | None = None
        self._told: set[tuple[str, int | None, int, bool]] = set()

    def look(self, seats: Mapping[int, Seat], now: float, cut: Collection[int] = ()) -> list[Finding]:
        """To be called about once a second, with all replicas that have not ended. now: of
        time.monotonic. What is still so at the next look is told once. cut: replicas on a link that seems to be cut.
        """
        assert self._board is not None
        board = self._board
        return self.judge({replica: look for replica, seat in seats.items() if (look := at(board, seat))}, now, cut)

    def judge(self, looks: Mapping[int, Look], now: float, cut: Collection[int] = ()) -> list[Finding]:
        """The same of what was seen of them."""
        self._view = silence.follow(self._view, now, looks, self._patience)
        found = {(f.kind, f.replica, f.step, f.fence): f for f in silence.diagnose(self._view, self._patience, cut)}
        new = [finding for key, finding in found.items() if key not in self._told]
        self._told = set(found)
        return new

    def forget(self) -> None:
        """Begin anew, but for how long phases take: the replicas are about to be others, or were made to wait."""
        if self._view is not None:
            self._view = View(self._view.at, self._view.at, longest=self._view.longest)


def at(board: Board, seat: Seat) -> Look | None:
    """None where the process is gone."""
    line, seen = board.read(seat.slot), seat.told if seat.pid is None else vitals.read(seat.pid)
    return seen and Look(line.step, line.phase.name.lower(), line.since, seen.state, seen.cpu, seen.switches)
