"""What the engine asks of Linux, tried: kernels that are too old, and sandboxes that refuse a call."""

import errno
import locale
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from samestep import units
from samestep.launch.health.finding import Finding, Need, failure, looked, warning

LITTLE = 64 << 20  # bytes of /dev/shm: what Docker gives
EPOCH = 1_704_067_200.0  # 2024-01-01, before any release of samestep
SHM = Path("/dev/shm")
SEMAPHORES = "processes that read data share semaphores there"


@dataclass(frozen=True)
class Kernel:
    """refused: a call -> why it was. shared: bytes of /dev/shm, None where it is not there. asked: TMPDIR."""

    release: str
    refused: Mapping[str, str]
    shared: int | None
    encoding: str
    now: float  # seconds since 1970
    temporary: str | None  # None: nowhere can a temporary file be made
    asked: str | None
    executes: bool  # what lies in the temporary folder
    compiler: str | None


def read() -> Kernel:
    temporary = _temporary()
    return Kernel(
        os.uname().release,
        refused(),
        _size(SHM),
        locale.getencoding(),
        time.time(),
        temporary,
        os.environ.get("TMPDIR"),
        temporary is None or not os.statvfs(temporary).f_flag & os.ST_NOEXEC,
        _compiler(),
    )


def judge(kernel: Kernel, need: Need) -> list[Finding]:
    found = [*_calls(kernel), *_shared(kernel), *_clock(kernel), *_locale(kernel), *_temporary_folder(kernel)]
    return looked("kernel", f"Linux {kernel.release}", found + (_compiles(kernel) if need.compiles else []))


def refused() -> dict[str, str]:
    """The calls without which no replica can be started or data read, that do not work here."""
    tried = {"pidfd_open": _pidfd, "memfd_create": _memfd, "sem_open": _semaphore}
    return {name: reason for name, call in tried.items() if (reason := call())}


def _pidfd() -> str:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return _reason(error)
    return ""


def _memfd() -> str:
    try:
        os.close(os.memfd_create("samestep-doctor"))
    except OSError as error:
        return _reason(error)
    return ""


def _semaphore() -> str:
    """As concurrent.futures makes them; they have no name once they are made."""
    try:
        multiprocessing.get_context("fork").Semaphore(1)
    except OSError as error:
        return _reason(error)
    return ""


def _reason(error: OSError) -> str:
    return error.strerror or errno.errorcode.get(error.errno or 0, "?")


def _calls(kernel: Kernel) -> list[Finding]:
    fix = "Linux 5.3 or newer, and a container whose seccomp profile allows it (Docker 20.10 or newer)"
    calls = [name for name in ("pidfd_open", "memfd_create") if name in kernel.refused]
    return [failure("kernel", f"Linux refuses {name} here: {kernel.refused[name]}", fix) for name in calls]


def _shared(kernel: Kernel) -> list[Finding]:
    fix = "mount -t tmpfs -o size=1g tmpfs /dev/shm, or docker run --shm-size=1g"
    if reason := kernel.refused.get("sem_open"):
        return [failure("/dev/shm", f"no semaphore can be made in /dev/shm ({reason}), and {SEMAPHORES}", fix)]
    if kernel.shared is None or kernel.shared >= LITTLE:
        return []
    what = f"/dev/shm holds {units.size(kernel.shared)}: enough for samestep, too little for NCCL and data loaders"
    return [warning("/dev/shm", what, fix)]


def _clock(kernel: Kernel) -> list[Finding]:
    if kernel.now >= EPOCH:
        return []
    day = time.strftime("%Y-%m-%d", time.gmtime(kernel.now))
    what = f"the clock says {day}: certificates of hubs and stores will not be accepted, and journals be misdated"
    return [warning("clock", what, "set it: timedatectl set-ntp true, or chronyc makestep")]


def _locale(kernel: Kernel) -> list[Finding]:
    if kernel.encoding.lower().replace("-", "") == "utf8":
        return []
    what = f"text is {kernel.encoding} here: names and samples with other characters cannot be read or shown"
    return [warning("locale", what, "export LC_ALL=C.UTF-8, or PYTHONUTF8=1")]


def _temporary_folder(kernel: Kernel) -> list[Finding]:
    if kernel.temporary is None:
        what = (
            "no temporary file can be made in TMPDIR, /tmp, /var/tmp, /usr/tmp or here; pilot, chaos and pip need them"
        )
        return [warning("temporary files", what, "free space on /tmp, or set TMPDIR to a folder with some")]
    if kernel.asked and Path(kernel.asked).resolve() != Path(kernel.temporary).resolve():
        what = f"TMPDIR is {kernel.asked}, where no file can be made; {kernel.temporary} is used in its place"
        return [warning("temporary files", what, "make that folder writable, or unset TMPDIR")]
    return []


def _compiles(kernel: Kernel) -> list[Finding]:
    found = []
    if kernel.compiler is None:
        what = "compute.compile needs a C++ compiler, and none is on PATH"
        found.append(failure("compiler", what, "install g++, or set compute.compile: false"))
    if not kernel.executes:
        what = f"compute.compile loads what it has compiled from {kernel.temporary}, which is mounted noexec"
        found.append(failure("compiler", what, "set TMPDIR to a folder from which programs may run"))
    return found


def _temporary() -> str | None:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return None


def _size(folder: Path) -> int | None:
    try:
        seen = os.statvfs(folder)
    except OSError:
        return None
    return seen.f_blocks * seen.f_frsize


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in names if name and (path := shutil.which(name))), None)
