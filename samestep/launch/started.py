"""What a process knows of the launch that it is part of: by torchrun, srun, a JobSet, or whatever sets RANK. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from samestep.errors import ClusterError

HOW = "torchrun sets RANK and WORLD_SIZE, srun SLURM_PROCID, a JobSet JOB_COMPLETION_INDEX beside WORLD_SIZE"


@dataclass(frozen=True)
class Started:
    """index: of this process among `size`; it says nothing about hosts. job: what all processes of the launch share and
    those of others do not. hint: a name or address of the host of process 0, or of one on the same network; sure: it
    is process 0's. restarts: how often the launcher has started it again, as far as it says. local: its number
    among those of its host, as far as that is said.
    """

    by: str  # torchrun | srun | a JobSet | RANK
    index: int
    size: int
    job: str
    hint: str = "127.0.0.1"
    sure: bool = False
    restarts: int = 0
    local: int = 0


def started(environment: Mapping[str, str]) -> Started:
    """ClusterError where nobody has started it, or numbers are no numbers."""
    for there, read in (("RANK", _by_rank), ("SLURM_PROCID", _by_srun), ("JOB_COMPLETION_INDEX", _by_jobset)):
        if there in environment:
            return _checked(read(environment))
    raise ClusterError(f"--engine env was asked for, but nothing says which process of how many this is; {HOW}")


def _by_rank(known: Mapping[str, str]) -> Started:
    """torchrun (its MASTER_PORT is taken already), and whoever else sets these."""
    address = known.get("MASTER_ADDR", "")
    elastic = "TORCHELASTIC_RUN_ID" in known
    job = " ".join([known.get("TORCHELASTIC_RUN_ID", ""), address, known.get("MASTER_PORT", ""), _scheduled(known)])
    by, restarts = ("torchrun", "TORCHELASTIC_RESTART_COUNT") if elastic else ("RANK", "JOBSET_RESTART_ATTEMPT")
    index, size = _number(known, "RANK"), _number(known, "WORLD_SIZE")
    if known.get("LOCAL_WORLD_SIZE") == str(size):  # one host
        address, elastic = "127.0.0.1", True
    return Started(
        by,
        index,
        size,
        job,
        _address(address, size),
        not elastic,
        _number(known, restarts, "0"),
        _number(known, "LOCAL_RANK", "0"),
    )


def _by_srun(known: Mapping[str, str]) -> Started:
    """Process 0 may be on any node; srun itself is on one of their network."""
    size = _number(known, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in known else "SLURM_NTASKS")
    nodes = known.get("SLURM_STEP_NUM_NODES", known.get("SLURM_NNODES", "1"))
    hint = "127.0.0.1" if nodes == "1" else known.get("MASTER_ADDR") or known.get("SLURM_LAUNCH_NODE_IPADDR", "")
    restarts = _number(known, "SLURM_RESTART_COUNT", "0")
    return Started(
        "srun",
        _number(known, "SLURM_PROCID"),
        size,
        _scheduled(known),
        _address(hint, size),
        False,
        restarts,
        _number(known, "SLURM_LOCALID", "0"),
    )


def _by_jobset(known: Mapping[str, str]) -> Started:
    names = ("JOBSET_NAMESPACE", "JOBSET_NAME", "JOBSET_UID", "MASTER_ADDR", "MASTER_PORT")
    job, size = " ".join(known.get(name, "") for name in names), _number(known, "WORLD_SIZE")
    index, restarts = _number(known, "JOB_COMPLETION_INDEX"), _number(known, "JOBSET_RESTART_ATTEMPT", "0")
    return Started("a JobSet", index, size, job, _address(known.get("MASTER_ADDR", ""), size), True, restarts)


def _scheduled(known: Mapping[str, str]) -> str:
    return " ".join(known.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))


def _address(found: str, size: int) -> str:
    if size > 1 and not found:
        raise ClusterError(f"{size} processes were started, but MASTER_ADDR is not set; set it to process 0's host")
    return found or "127.0.0.1"


def _number(known: Mapping[str, str], name: str, otherwise: str | None = None) -> int:
    value = known.get(name, otherwise)
    if value is None or not value.isdecimal():
        raise ClusterError(f"{name} is {value!r}, but must be a number for --engine env; {HOW}")
    return int(value)


def _checked(found: Started) -> Started:
    if found.index >= found.size:
        raise ClusterError(f"this is process {found.index} of {found.size}, numbered from 0; {HOW}")
    return found
