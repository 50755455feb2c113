"""Why a replica ended: the error to raise where the run ends with it, and whether it would come again."""

from pathlib import Path

from samestep.errors import ClusterError, SamestepError
from samestep.launch.child import Child, kind
from samestep.replica.board import Line


class Causes:
    """logs: the folder of what replicas print; None: the terminal."""

    def __init__(self, logs: Path | None) -> None:
        self._logs = logs
        self._seen: dict[tuple[int, str], tuple[int, int]] = {}

    def error(self, child: Child, at: Line) -> SamestepError:
        """What to tell where nobody can go on without it. at: what it did last."""
        what = f"replica {child.replica}, " + (
            f"step {at.step}, {at.phase.name.lower()}" if at.step else "at the start"
        )
        if child.silence is not None:
            return ClusterError(child.silence)
        return child.error(what) if child.failure else self._unexplained(child, what)

    def returns(self, child: Child, step: int) -> bool:
        """Whether its error would come again by itself: most of our own do, others that came in two tries of a step."""
        if child.failure is None:
            return False
        attempt = (child.generation, child.replica if not child.generation else 0)
        again = self._seen.setdefault((step, child.failure["message"]), attempt) != attempt
        return again or (child.failure["ours"] and not kind(child.failure).passing)

    def _unexplained(self, child: Child, what: str) -> ClusterError:
        if child.code is None and not child.lost:
            how, look = "lost its peers, and none of them has ended", "look at the network"
        else:
            how = child.end()
            look = f"look at {self._logs}/replica-{child.replica}.log" if self._logs else "look at what it printed"
        return ClusterError(f"a replica {how} ({what}, pid {child.pid}); all others were stopped; {look}")
