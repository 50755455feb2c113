"""How much of the machine this user may have, against what a recipe needs: cores, memory, files, processes, time."""

import math
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from samestep import units
from samestep.launch.health import groups
from samestep.launch.health.finding import Finding, Need, failure, looked, warning
from samestep.replica.place import MOST_DESCRIPTORS

OWN = 40  # descriptors of the engine itself: logs, journal, terminal, the board
EACH = 4  # and for each replica
TASKS = 5  # threads of a replica beside those that compute: wire, checkpoints, watching; and of the engine
LIBRARIES = 700 << 20  # bytes of address space once torch is imported (640 MB measured)
TIGHT = 0.8  # of the memory that is free


@dataclass(frozen=True)
class Limits:
    """Infinite where there is none. files, file_size (bytes), cpu (seconds), space (bytes) are of one process; tasks
    may still be started by this user. cores: that it may use, of `all_cores`. memory: bytes that are free.
    """

    files: float = math.inf
    file_size: float = math.inf
    cpu: float = math.inf
    space: float = math.inf
    tasks: float = math.inf
    cores: float = 1
    all_cores: int = 1
    memory: float = math.inf


def read() -> Limits:
    group, given = groups.read(), len(os.sched_getaffinity(0))
    return Limits(
        files=_soft(resource.RLIMIT_NOFILE),
        file_size=_soft(resource.RLIMIT_FSIZE),
        cpu=_soft(resource.RLIMIT_CPU),
        space=_soft(resource.RLIMIT_AS),
        tasks=min(_tasks(), group.tasks),
        cores=min(given, group.cores),
        all_cores=os.cpu_count() or given,
        memory=min(_free(), group.memory),
    )


def judge(limits: Limits, need: Need) -> list[Finding]:
    shown = f"{units.size(limits.memory)} of memory, {limits.cores:g} cores, {limits.files:,} files a process"
    rules = (_files, _descriptors, _tasks_left, _file_size, _time, _space, _cores, _memory)
    return looked("limits", shown, [finding for rule in rules if (finding := rule(limits, need))])


def descriptors(near: tuple[int, ...]) -> int:
    """That the engine has open while it makes the socket pairs of each host (launch/local.py)."""
    return OWN + EACH * sum(near) + sum(count * (count - 1) for count in near)


def _files(limits: Limits, need: Need) -> Finding | None:
    needed = descriptors(need.near)
    if limits.files >= needed:
        return None
    what = f"{need.replicas} replicas need {needed:,} open files, this process may have {limits.files:,} (ulimit -n)"
    return failure("open files", what, f"ulimit -n {needed}, or fewer replicas a host")


def _descriptors(_: Limits, need: Need) -> Finding | None:
    if max(need.near) <= MOST_DESCRIPTORS:
        return None
    what = (
        f"{max(need.near)} replicas on one host, but Linux passes at most {MOST_DESCRIPTORS} of their sockets at once"
    )
    return failure("open files", what, "fewer replicas a host, with more compute.threads each")


def _tasks_left(limits: Limits, need: Need) -> Finding | None:
    needed = need.replicas * (TASKS + need.threads) + TASKS
    if limits.tasks >= needed:
        return None
    what = f"{need.replicas} replicas are {needed} processes and threads, but only {limits.tasks:,} more may be started"
    return failure("processes", what, f"ulimit -u (or pids.max of the container) {needed} higher, or fewer replicas")


def _file_size(limits: Limits, need: Need) -> Finding | None:
    largest = max(need.checkpoint or 0, need.model or 0)
    if limits.file_size == math.inf or 0 < largest <= limits.file_size:
        return None
    allowed = f"no file may grow beyond {units.size(limits.file_size)} here (ulimit -f)"
    if largest:
        return failure("file size", f"{allowed}, but the model takes {units.size(largest)}", "ulimit -f unlimited")
    return warning("file size", f"{allowed}, checkpoints included", "ulimit -f unlimited")


def _time(limits: Limits, _: Need) -> Finding | None:
    if limits.cpu == math.inf:
        return None
    what = f"each process is killed after {units.duration(limits.cpu)} of processor time (ulimit -t)"
    return warning("processor time", what, "ulimit -t unlimited, or train in a job instead of on a login node")


def _space(limits: Limits, need: Need) -> Finding | None:
    needed = LIBRARIES + (need.memory or 0) // need.replicas
    if limits.space >= needed:
        return None
    what = f"a replica maps {units.size(needed)} at least, but may map {units.size(limits.space)} (ulimit -v)"
    return failure("address space", what, "ulimit -v unlimited")


def _cores(limits: Limits, need: Need) -> Finding | None:
    threads = need.replicas * need.threads
    if threads <= limits.cores:
        return None
    here = f"{limits.cores:g} cores" + (f" of {limits.all_cores}" if limits.cores < limits.all_cores else "")
    what = f"{need.replicas} replicas of {need.threads} threads compute on {here}: they wait for each other"
    return warning("cores", what, "fewer replicas, fewer compute.threads, or a wider cpu quota or affinity")


def _memory(limits: Limits, need: Need) -> Finding | None:
    if need.memory is None or need.memory <= TIGHT * limits.memory:
        return None
    what = f"training takes {units.size(need.memory)} on {need.replicas} replicas"
    have = f"{units.size(limits.memory)} of memory are free"
    if need.memory > limits.memory:
        return failure("memory", f"{what}, but {have}", "fewer replicas, a smaller model, model.lora, or more hosts")
    fix = "compute.checkpointing: full and a small micro_batch, or fewer replicas"
    return warning("memory", f"{what}, and {have}", fix)


def _soft(kind: int) -> float:
    soft = resource.getrlimit(kind)[0]
    return math.inf if soft == resource.RLIM_INFINITY else soft


def _tasks() -> float:
    """Linux does not hold root to it."""
    return math.inf if os.geteuid() == 0 else _soft(resource.RLIMIT_NPROC) - _own_tasks(os.geteuid())


def _own_tasks(user: int) -> int:
    return sum(_threads(folder) for folder in Path("/proc").iterdir() if folder.name.isdecimal() and _is(folder, user))


def _is(folder: Path, user: int) -> bool:
    try:
        return folder.stat().st_uid == user
    except OSError:  # it has just ended
        return False


def _threads(folder: Path) -> int:
    try:
        return len(list((folder / "task").iterdir()))
    except OSError:
        return 0


def _free() -> float:
    """Bytes that Linux could give to new processes without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * found[0] if found else math.inf
