"""What an engine does: start every replica that is asked for, watch them, end them together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from samestep.events import Event
from samestep.launch.hosts import HERE, Host
from samestep.recover.protocol import Terms

OnEvent = Callable[[Event], None]
Restore = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Program:
    """What every replica runs. `work` is passed on to it; `logs` takes its output, else it goes to the terminal.

    restore: the work with which all begin again from what is on the disk, when a part of the state is lost. Without it
    the run ends with the first replica that is lost.
    """

    command: Sequence[str]
    transport: str = "shared memory"  # shared memory | sockets | torch
    threads: int = 1  # a replica
    work: dict[str, Any] = field(default_factory=dict)
    logs: Path | None = None
    restore: Restore | None = None
    ends_silent: bool = True  # end a replica that hangs or is cut off, as if it had died; False: only tell of it
    hosts: Sequence[Host] = (HERE,)  # in the order in which they are filled
    gpus: int = 0  # a replica, where the engine asks a scheduler for places
    shards: int = 1  # processes of a replica; its first one starts the others


class Engine(Protocol):
    def stop(self) -> None:
        """Ask all replicas to end after the step that they are in, with a checkpoint. From any thread or handler."""

    def run(self, program: Program, terms: Terms, on_event: OnEvent) -> None:
        """Run to the end of all replicas, on those that are left where some are lost and the program can restore.

        on_event hears what replicas say, with their `rank`, and of `left`, `silent`, `formed`, `unreachable` and
        `reachable`. Where the run cannot go on, all are ended, and the first cause is raised as one SamestepError that
        names replica, step and phase.
        """
