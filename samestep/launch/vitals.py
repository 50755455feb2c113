"""What Linux tells of a process under /proc: whether it runs, and how much it has run."""

import os
from pathlib import Path
from typing import NamedTuple

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


class Vitals(NamedTuple):
    """state and switches are of the main thread: the letters of proc(5), and how often it gave up a processor, which
    also grows where it is stopped and goes on between two looks. cpu: seconds that all threads have used, in 10 ms.
    """

    state: str
    cpu: float
    switches: int


def parse(stat: str, status: str) -> Vitals:
    """From the text of /proc/PID/stat and /proc/PID/status."""
    fields = stat.rpartition(")")[2].split()  # before it the command's name, which may hold anything
    counts = [line.split()[1] for line in status.splitlines() if "ctxt_switches:" in line]
    return Vitals(fields[0], (int(fields[11]) + int(fields[12])) * TICK, sum(map(int, counts)))


def read(pid: int) -> Vitals | None:
    """None where the process is gone, or dead and not yet waited for."""
    folder = Path(f"/proc/{pid}")
    try:
        found = parse(*((folder / name).read_text(errors="replace") for name in ("stat", "status")))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if found.state in "ZXx" else found
