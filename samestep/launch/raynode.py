"""One node of a Ray cluster inside a Slurm job; srun starts it on each node of the job (launch/slurm.py).

    python -m samestep.launch.raynode FILE CPUS FOLDER

The head is on the first node, and writes its address into FILE once it is there, where all others find it. What does
not start is tried again: Ray gives a raylet 30 s, and a busy node may take more. A raylet that ends is started again,
but not the head's: with it the cluster is lost.

Slurm sends SIGTERM to all processes of a job that it wants back. Here, and so in all that Ray starts, it is blocked:
the nodes stay until the run has written its checkpoint on them. SIGUSR1 ends the node. FOLDER, which holds Ray's files
on this node, is deleted then.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from samestep.launch.broker import STORE
from samestep.launch.orphans import adopt, below, end_all

LOOK = 0.5  # seconds between two looks at whether the head is there
PAUSE = 5.0  # seconds between two starts
START = (sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats")
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # a replica does not give way to all others
RAYLET = "raylet\n"  # its process, in /proc


def main() -> None:
    file, cpus, folder = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.environ.update(OWN)
    places = [f"--num-cpus={cpus}", f"--object-store-memory={STORE}"]
    with _shielded(folder):
        if os.environ["SLURM_NODEID"] == "0":  # of the step, whose first node is the batch script's
            lead(file, places, os.environ["SLURM_LAUNCH_NODE_IPADDR"], folder)
        follow(file, places)


@contextlib.contextmanager
def _shielded(folder: Path) -> Iterator[None]:
    """Against SIGTERM. At the end nothing is left below this process, and no folder."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.signal(signal.SIGUSR1, _end)
    adopt()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        end_all(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)


def lead(file: Path, places: Sequence[str], host: str, folder: Path) -> NoReturn:
    port = _free_port(host)
    at = [f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
    while not _started(["--head", *places, *at]):
        time.sleep(PAUSE)
    fresh = file.with_suffix(".new")
    fresh.write_text(f"{host}:{port}")
    fresh.rename(file)
    _wait_for_raylet()
    sys.exit("the head of the Ray cluster has ended")


def follow(file: Path, places: Sequence[str]) -> NoReturn:
    while not file.exists():
        time.sleep(LOOK)
    while True:
        if _started([*places, f"--address={file.read_text()}"]):
            _wait_for_raylet()
        time.sleep(PAUSE)


def _started(arguments: Sequence[str]) -> bool:
    """Ray's processes then run on below this one. What an earlier start has left is ended."""
    end_all(os.getpid())
    return subprocess.run([*START, *arguments], check=False).returncode == 0


def _wait_for_raylet() -> None:
    for pid in below(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended just now
            if Path(f"/proc/{pid}/comm").read_text() == RAYLET:
                os.waitpid(pid, 0)
                return


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as free:
        return int(free.getsockname()[1])


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
