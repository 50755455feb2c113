"""A few hosts on this machine: network namespaces on one bridge, whose links are cut and mended at will."""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys

import pytest

NUMBERS = itertools.count()


class Lab:
    """hosts: as the recipe's run.hosts takes them."""

    def __init__(self, size):
        self.name = f"st{os.getpid() % 100_000}n{next(NUMBERS)}"
        self.hosts = {
            f"h{i}": {"start": f"ip netns exec {self.name}h{i}", "address": f"10.77.0.{i + 1}"} for i in range(size)
        }

    def up(self):
        ip("link", "add", self.name, "type", "bridge")
        ip("link", "set", self.name, "up")
        for host, known in self.hosts.items():
            space, link = self.name + host, f"{self.name}v{host}"
            ip("netns", "add", space)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", link, "master", self.name, "up")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "addr", "add", f"{known['address']}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")

    def cut(self, host):
        ip("link", "set", f"{self.name}v{host}", "down")

    def mend(self, host):
        ip("link", "set", f"{self.name}v{host}", "up")

    def shape(self, rate):
        """Let every link pass so many bits a second, in each direction."""
        burst = max(128 << 10, rate // 8000)  # bytes; what passes in a millisecond
        limits = ["root", "tbf", "rate", f"{rate}bit", "burst", str(burst), "latency", "200ms"]
        for host in self.hosts:
            run("tc", "qdisc", "replace", "dev", f"{self.name}v{host}", *limits)
            run("tc", "-n", self.name + host, "qdisc", "replace", "dev", "eth0", *limits)

    def python(self, host, code):
        """A process on a host, with its output."""
        command = [*self.hosts[host]["start"].split(), sys.executable, "-c", code]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def down(self):
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", self.name + host], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.name], check=False, capture_output=True)


def ip(*words):
    run("ip", *words)


def run(*command):
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def lab(size):
    """Skips the test where no such hosts can be made."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("hosts are network namespaces here, which need root and iproute2")
    made = Lab(size)
    try:
        try:
            made.up()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces can be made here: {error.stderr.strip()}")
        yield made
    finally:
        made.down()
