"""One node of a Ray cluster inside a Slurm job; srun starts it on each node of the job (launch/slurm.py).

    python -m samestep.launch.raynode FILE CPUS FOLDER

The head is on the first node, and writes its address into FILE, where all others find it. A raylet that ends is started
again; with the head the cluster is lost.

Slurm sends SIGTERM to all processes of a job that it wants back. Here, and so in all that Ray starts, it is blocked:
the nodes stay until the run has written its checkpoint on them. SIGUSR1 ends the node. FOLDER, which holds Ray's files
on this node, is deleted then.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from samestep.launch.broker import STORE
from samestep.launch.orphans import adopt, end_all

LOOK = 0.5  # seconds between two looks at whether the head is there
PAUSE = 5.0  # seconds after the end of a raylet
START = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # a replica does not give way to all others


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.signal(signal.SIGUSR1, _end)
    file, cpus, folder = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.environ.update(OWN)
    adopt()
    try:
        if is_head(os.environ):
            _head(file, cpus, folder, os.environ["SLURM_LAUNCH_NODE_IPADDR"])
        while True:
            subprocess.run([*START, *places(cpus), f"--address={_found(file)}"], check=False)
            time.sleep(PAUSE)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        end_all(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)


def is_head(environment: Mapping[str, str]) -> bool:
    """Whether this is the first node of the step, where the batch script runs."""
    return environment["SLURM_NODEID"] == "0"


def places(cpus: int) -> Sequence[str]:
    return f"--num-cpus={cpus}", f"--object-store-memory={STORE}"


def _head(file: Path, cpus: int, folder: Path, host: str) -> NoReturn:
    port = _free_port(host)
    at = [f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
    with subprocess.Popen([*START, "--head", *places(cpus), *at]) as head:
        while head.poll() is None and not _answers(host, port):
            time.sleep(LOOK)
        if head.poll() is None:
            _publish(file, f"{host}:{port}")
        head.wait()
    sys.exit("the head of the Ray cluster has ended")


def _publish(file: Path, address: str) -> None:
    """Whole or not at all."""
    fresh = file.with_suffix(".new")
    fresh.write_text(address)
    fresh.rename(file)


def _found(file: Path) -> str:
    while not file.exists():
        time.sleep(LOOK)
    return file.read_text()


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as free:
        return int(free.getsockname()[1])


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), LOOK).close()
    except OSError:
        return False
    return True


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
