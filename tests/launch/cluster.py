"""A Ray cluster on this machine: a head and further raylets, each killed or ended by its process ids alone."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

MARK = "SAMESTEP_RAY_LAB"  # in the environment of all that belongs to one cluster
OURS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}


class Cluster:
    """Its nodes are `ray start --block`, by name; head is the first."""

    def __init__(self, folder):
        self.folder, self.nodes = Path(folder), {}
        self.environment = os.environ | OURS | {MARK: secrets.token_hex(8), "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment.pop("RAY_ADDRESS", None)
        self.address = ""

    def head(self, cpus):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        host = socket.gethostbyname(socket.gethostname())
        self.address = f"{host}:{port}"
        places = ["--head", f"--port={port}", f"--node-ip-address={host}", "--include-dashboard=false"]
        self._start("head", [*places, f"--temp-dir={self.folder}"], cpus)
        while not self._answers(host, port):
            assert self.nodes["head"].poll() is None, (self.folder.parent / "head.log").read_text()
            time.sleep(0.2)

    def raylet(self, name, cpus):
        self._start(name, [f"--address={self.address}"], cpus)

    def _answers(self, host, port):
        try:
            socket.create_connection((host, port), 5).close()
        except OSError:
            return False
        return True

    def _start(self, name, arguments, cpus):
        limits = [f"--num-cpus={cpus}", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]
        with (self.folder.parent / f"{name}.log").open("ab") as log:
            self.nodes[name] = subprocess.Popen(
                [Path(sys.executable).with_name("ray"), "start", *limits, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 180
        while not self.raylets(name) and time.monotonic() < until:
            assert self.nodes[name].poll() is None, (self.folder.parent / f"{name}.log").read_text()
            time.sleep(0.1)

    def of(self, name):
        """The processes of a node, replicas among them."""
        return psutil.Process(self.nodes[name].pid).children(recursive=True)

    def raylets(self, name):
        return [process for process in self.of(name) if process.name() == "raylet"]

    def kill(self, name):
        """As if its power were cut, but that its kernel lives: all at once, the raylet and its workers."""
        for process in [psutil.Process(self.nodes[name].pid), *self.of(name)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # of which ZombieProcess is one kind
                if "samestep.replica" not in process.cmdline():  # Linux ends these, as their nurses die
                    process.kill()
        self.nodes.pop(name).wait()

    def down(self):
        for process in self.nodes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.nodes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def left(self, seconds):
        """What has not ended within so many seconds, as text."""
        until = time.monotonic() + seconds
        while (found := self._marked()) and time.monotonic() < until:
            time.sleep(0.2)
        return found

    def end(self):
        for process in psutil.process_iter():
            if self._is_ours(process):
                process.kill()

    def _marked(self):
        return [p.cmdline() for p in psutil.process_iter() if self._is_ours(p)]

    def _is_ours(self, process):
        try:
            return process.environ().get(MARK) == self.environment[MARK] and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
