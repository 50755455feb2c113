"""What a disk does, tried in a process of its own: the calls with which runs are saved, its speed and its room.

python -m samestep.launch.health.folder FOLDER      prints what it found as JSON, and leaves nothing there
"""

import errno
import json
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from samestep import units
from samestep.launch.health.finding import Finding, Need, failure, looked, warning
from samestep.recover.disk import Disk

PATIENCE = 10.0  # seconds until a disk counts as one that does not answer
TIME, PIECE, MOST = 0.5, 1 << 18, 16 << 20  # of the measurement: seconds, bytes at first, bytes in all
SYNCS = 5
SLOW_SYNC, SLOW = 0.25, 5e6  # seconds, bytes a second: of a disk that holds up a run
FEW = 100  # files that may still be made
FAR = ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs")
MEMORY = ("tmpfs", "ramfs")

Facts = dict[str, Any]


class Mount(NamedTuple):
    point: str
    kind: str  # of the file system


def look(folder: Path) -> Facts:
    """there: the folder, or the nearest above it that is there. Sizes in bytes, times in seconds."""
    there = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.is_dir())
    seen = os.statvfs(there)
    files = seen.f_favail if seen.f_files else -1  # some file systems do not count them
    free = seen.f_bavail * seen.f_frsize
    facts = {"there": str(there), "device": there.stat().st_dev, "free": free, "files": files}
    return facts | _tried(there / f".samestep-doctor-{os.getpid()}", free)


def _tried(probe: Path, free: int) -> Facts:
    doing = ""
    try:
        for doing in ACTS:
            ACTS[doing](Disk(), probe)
        doing = "write and sync"
        return {"sync": _sync(probe / "sync")} | ({"rate": _rate(probe / "rate")} if free > 16 * MOST else {})
    except OSError as error:
        return {"refused": doing, "errno": error.errno, "reason": error.strerror}
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _append(_: Disk, probe: Path) -> None:
    with (probe / "one").open("ab") as file:
        file.write(b"line\n")


def _rename_folder(disk: Disk, probe: Path) -> None:
    disk.make(probe / "step.partial")
    disk.rename(probe / "step.partial", probe / "step")


# In this order; each is a call of recover/.
ACTS: dict[str, Callable[[Disk, Path], None]] = {
    "make a folder": lambda disk, probe: disk.make(probe),
    "write a file": lambda disk, probe: disk.write(probe / "one", [bytes(1 << 16)]),
    "append to a file": _append,
    "rename a file": lambda disk, probe: disk.rename(probe / "one", probe / "two"),
    "rename a folder": _rename_folder,
    "delete a file": lambda disk, probe: disk.unlink(probe / "two"),
}


def _sync(path: Path) -> float:
    """The median of a few small writes."""
    taken: list[float] = []
    began = time.monotonic()
    with path.open("wb", buffering=0) as file:
        while len(taken) < SYNCS and (not taken or time.monotonic() - began < TIME):
            before = time.monotonic()
            file.write(bytes(4096))
            os.fsync(file)
            taken.append(time.monotonic() - before)
    return statistics.median(taken)


def _rate(path: Path) -> float:
    """Bytes a second of what is synced as it is written."""
    began, written, piece = time.monotonic(), 0, os.urandom(PIECE)  # no file system makes it smaller
    with path.open("wb", buffering=0) as file:
        while not written or (written < MOST and time.monotonic() - began < TIME):
            written += file.write(piece)
            os.fsync(file)
            piece += piece
    return written / (time.monotonic() - began)


def mount_of(folder: Path, mounts: str) -> Mount:
    """Where a folder lies, by its name alone: one that hangs is not touched. mounts: of /proc/self/mountinfo."""
    pairs = [line.partition(" - ") for line in mounts.splitlines()]
    found = [Mount(_plain(place.split()[4]), system.split()[0]) for place, _, system in pairs]
    holding = [mount for mount in found if folder.is_relative_to(mount.point)]
    deepest = max((len(mount.point) for mount in holding), default=0)
    return [mount for mount in holding if len(mount.point) == deepest][-1]  # the last covers those before


def _plain(text: str) -> str:
    """mountinfo writes a space as \\040."""
    return text.encode().decode("unicode_escape") if "\\" in text else text


def judge(use: str, folder: Path, facts: Facts, mount: Mount, need: Need) -> list[Finding]:
    """use: run folder, cache or alternate; only runs and alternates hold what `need` says."""
    if "late" in facts:
        what = f"{folder} on {mount.kind} does not answer within {facts['late']:.0f} s"
        return [failure(use, what, f"look at what is mounted at {mount.point}, or choose another folder")]
    if "error" in facts:
        return [failure(use, f"{folder} cannot be looked at: {facts['error']}", "see the other findings")]
    if "refused" in facts:
        return [_refused(use, folder, facts, mount)]
    shown = f"{folder}: {mount.kind}, {units.size(facts['free'])} free, a sync takes {units.duration(facts['sync'])}"
    found = [*_kind(use, folder, mount), *_room(use, folder, facts, need)] if use != "cache" else []
    found += _speed(use, facts, need)
    return looked(use, shown, found)


def _refused(use: str, folder: Path, facts: Facts, mount: Mount) -> Finding:
    there = facts["there"]
    if facts["errno"] == errno.EROFS:
        return failure(use, f"{there} is on a read-only file system", f"mount -o remount,rw {mount.point}")
    if facts["errno"] in (errno.EACCES, errno.EPERM):
        what = f"{folder} cannot be written by this user: {facts['reason']} in {there}"
        return failure(use, what, f"chown it (id {os.geteuid()}), or choose another folder")
    if facts["errno"] in (errno.ENOSPC, errno.EDQUOT):
        lack = "no more files" if facts["files"] == 0 and facts["free"] else "no room"
        what = f"the disk of {there} takes {lack}: {facts['reason']}"
        return failure(use, what, f"delete what is not needed at {mount.point} (df -h, df -i, quota)")
    what = f"{mount.kind} at {mount.point} does not {facts['refused']} ({facts['reason']}), as every save does"
    return failure(use, what, "choose a folder on a local disk")


def _kind(use: str, folder: Path, mount: Mount) -> list[Finding]:
    if mount.kind in MEMORY:
        what = f"{folder} is in memory ({mount.kind}): what is saved there is gone after a restart of the machine"
        return [warning(use, what, "choose a folder on a disk")]
    if mount.kind in FAR or mount.kind.startswith("fuse"):
        what = f"{folder} is on {mount.kind}: whether a sync and a rename outlast a power cut is up to what serves it"
        return [warning(use, what, "choose a folder on a local disk, or set run.alternate to one")]
    return []


def _room(use: str, folder: Path, facts: Facts, need: Need) -> list[Finding]:
    if 0 <= facts["files"] < FEW:
        what = f"only {facts['files']} more files can be made on the disk of {folder}"
        return [failure(use, what, "delete files there (df -i)")]
    if need.model is None or need.checkpoint is None:
        return []
    least = need.model + (need.checkpoint if need.keep else 0)
    most = need.model + (need.keep + 1) * need.checkpoint if need.keep else need.model
    free = f"{folder} has {units.size(facts['free'])} free"
    if facts["free"] < least:
        what = f"{free}, but the model{' and one checkpoint take' if need.keep else ' takes'} {units.size(least)}"
        return [failure(use, what, "free space there, or choose another disk with --run")]
    if facts["free"] < most:
        what = f"{free}, but the model, {need.keep} checkpoints and the one being written take {units.size(most)}"
        return [warning(use, what, "free space there, lower recover.keep, or set run.alternate")]
    return []


def _speed(use: str, facts: Facts, need: Need) -> list[Finding]:
    found = []
    if facts["sync"] > SLOW_SYNC:
        what = f"the disk of {facts['there']} takes {units.duration(facts['sync'])} to sync 4 kB"
        found.append(warning(use, what, "choose a local disk, or save less often (recover.checkpoint_every)"))
    if facts.get("rate", SLOW) < SLOW:
        long = f": a checkpoint takes {units.duration(need.checkpoint / facts['rate'])}" if need.checkpoint else ""
        what = f"the disk of {facts['there']} takes {units.size(facts['rate'])}/s{long}"
        found.append(warning(use, what, "choose a faster disk, or save less often (recover.checkpoint_every)"))
    return found


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that nothing is left there
    print(json.dumps(look(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
