"""A run that is asked to end by a signal makes a checkpoint first; asked a second time by Ctrl-C, it ends at once."""

import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from samestep.errors import ClusterError, Stopped
from samestep.events import Event
from samestep.launch.engine import Engine

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}  # 75: EX_TEMPFAIL of sysexits.h; schedulers take it for "run me again"


class Stopping:
    """While open, the first SIGTERM or SIGINT asks `engine` to stop; where one did, its end raises Stopped.

    `seen` is to be called with each event of the run; `say` shows a line to the user. Only in the main thread.
    """

    def __init__(self, engine: Engine, say: Callable[[str], None], run: str) -> None:
        self._engine, self._say, self._run = engine, say, run
        self._asked: signal.Signals | None = None
        self._saved = 0  # the step of the last checkpoint
        self._begun = self._ended = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in CODES}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, ClusterError) and self._asked and not self._begun:
            raise self._too_early(self._asked) from None
        if error is None and self._asked and not self._ended:
            raise self._outcome(self._asked)

    def seen(self, event: Event) -> None:
        self._begun = self._begun or event["event"] == "formed"
        if event["event"] == "checkpoint":
            self._saved = event["step"]
        self._ended = self._ended or event["event"] == "saved"

    def _ask(self, number: int, frame: object) -> None:
        if self._asked and number == signal.SIGINT:
            self._before[signal.SIGINT](number, frame)
        self._asked = self._asked or signal.Signals(number)
        self._engine.stop()
        self._say("stopping after this step, with a checkpoint; Ctrl-C ends at once")

    def _too_early(self, number: signal.Signals) -> Stopped:
        stopped = Stopped(f"stopped by {number.name} before the first step; samestep resume {self._run} begins anew")
        stopped.exit_code = 128 + number
        return stopped

    def _outcome(self, number: signal.Signals) -> Stopped | ClusterError:
        if not self._saved:
            return ClusterError(f"stopped by {number.name}, but no checkpoint was written; free space on its disk")
        stopped = Stopped(
            f"stopped by {number.name} with a checkpoint of step {self._saved}; samestep resume {self._run} goes on"
        )
        stopped.exit_code = CODES[number]
        return stopped
