"""What an engine does: start every replica that is asked for, watch them, end them together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from samestep.events import Event

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Program:
    """What every replica runs. `work` is passed on to it; `logs` takes its output, else it goes to the terminal."""

    command: Sequence[str]
    transport: str = "sockets"  # sockets | torch
    threads: int = 1  # a replica
    work: dict[str, Any] = field(default_factory=dict)
    logs: Path | None = None


class Engine(Protocol):
    def run(self, program: Program, replicas: int, on_event: OnEvent) -> None:
        """Run to the end of all replicas; never with fewer than asked.

        If one fails all are ended, and the first cause is raised as one SamestepError that names replica, step
        and phase.
        """
