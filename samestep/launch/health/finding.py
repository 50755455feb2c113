"""What the doctor says: one line each, and what a recipe needs of a machine. No IO."""

from dataclasses import dataclass
from typing import NamedTuple


class Finding(NamedTuple):
    """level: ok, warning (training works, but slower, or less safe) or failure (it would not). fix: what to do."""

    check: str
    level: str
    what: str
    fix: str = ""


def warning(check: str, what: str, fix: str) -> Finding:
    return Finding(check, "warning", what, fix)


def failure(check: str, what: str, fix: str) -> Finding:
    return Finding(check, "failure", what, fix)


def looked(check: str, what: str, found: list[Finding]) -> list[Finding]:
    """The findings, or that there are none, with what was looked at."""
    return found or [Finding(check, "ok", what)]


def split(check: str, message: str) -> Finding:
    """The failure that an error tells of: after its last semicolon it says what to do."""
    what, _, fix = message.partition("\n")[0].rpartition("; ")
    return failure(check, what or fix, fix if what else "see --debug")


@dataclass(frozen=True)
class Need:
    """What a recipe asks for. Sizes in bytes, at least; None: not known.

    near: replicas on each host. memory: of all replicas, which share this machine. sent: to and from a host in a step.
    checkpoint, model: on the disk.
    """

    near: tuple[int, ...] = (1,)
    threads: int = 1  # a replica
    memory: int | None = None
    sent: int | None = None
    checkpoint: int | None = None
    model: int | None = None
    keep: int = 0  # checkpoints
    compiles: bool = False
    cuda: bool = False  # replicas compute on GPUs
    transformers: bool = False  # the library loads or saves the model

    @property
    def replicas(self) -> int:
        return sum(self.near)
