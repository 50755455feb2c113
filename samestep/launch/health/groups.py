"""What the control groups of this process allow it, in both versions that Linux has (cgroups(7))."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SELF = Path("/proc/self")


class Groups(NamedTuple):
    """The tightest of its own group and those above it; infinite where there is no limit.

    cores: of processor time. memory: bytes that are left. tasks: processes and threads that may still be started.
    """

    cores: float
    memory: float
    tasks: float


def read() -> Groups:
    cgroups, mounts = ((SELF / name).read_text() for name in ("cgroup", "mountinfo"))
    return Groups(
        min(map(_cores, folders("cpu", cgroups, mounts)), default=math.inf),
        min(map(_memory, folders("memory", cgroups, mounts)), default=math.inf),
        min(map(_tasks, folders("pids", cgroups, mounts)), default=math.inf),
    )


def folders(controller: str, cgroups: str, mounts: str) -> list[Path]:
    """Where the limits of a controller stand, the innermost first. From the text of /proc/PID/cgroup and mountinfo."""
    lines = [line.split(":", 2) for line in cgroups.splitlines()]
    first = [path for _, names, path in lines if controller in names.split(",")]
    unified = [path for number, names, path in lines if number == "0" and not names]
    kind = "cgroup" if first else "cgroup2"
    for path in (first or unified)[:1]:
        for root, mount in _mounts(kind, controller if first else "", mounts):
            inner = mount / path.removeprefix(root).strip("/")
            return [inner, *(above for above in inner.parents if above.is_relative_to(mount))]
    return []


def _mounts(kind: str, controller: str, mounts: str) -> Iterator[tuple[str, Path]]:
    for line in mounts.splitlines():
        place, _, system = line.partition(" - ")
        found, _, options = system.split(" ", 2)
        if found == kind and (not controller or controller in options.split(",")):
            yield place.split()[3], Path(place.split()[4])


def _cores(folder: Path) -> float:
    if quota := _words(folder / "cpu.max"):
        return math.inf if quota[0] == "max" else int(quota[0]) / int(quota[1])
    quota, period = (_words(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else math.inf


def _memory(folder: Path) -> float:
    """Pages of files that nobody reads just now are given up before a process is killed."""
    limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
    used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
    if not limit or not used or limit[0] == "max":
        return math.inf
    counts = _words(folder / "memory.stat")
    stat = dict(zip(counts[::2], counts[1::2], strict=True))
    idle = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return int(limit[0]) - int(used[0]) + idle


def _tasks(folder: Path) -> float:
    limit, used = _words(folder / "pids.max"), _words(folder / "pids.current")
    return int(limit[0]) - int(used[0]) if limit and used and limit[0] != "max" else math.inf


def _words(file: Path) -> list[str]:
    """Empty where it cannot be read: groups above a container's own are hidden from it."""
    try:
        return file.read_text().split()
    except OSError:
        return []
