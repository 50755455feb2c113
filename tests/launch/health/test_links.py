"""The hosts of a recipe and the links between them, with faults that are made in network namespaces."""

import json
import subprocess
import sys

import pytest
from lab import ip, lab, run

from samestep.launch.health import links
from samestep.launch.health.finding import Need
from samestep.launch.health.probe import measure
from samestep.launch.hosts import Host
from tests.launch.health.sick import ROOT, TINY, doctor, one, package, preloaded, shell, shifted

SLOW_ANSWER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/socket.h>
#include <unistd.h>
ssize_t recv(int s, void *b, size_t n, int f) {
    ssize_t (*real)(int, void *, size_t, int) = dlsym(RTLD_NEXT, "recv");
    ssize_t got = real(s, b, n, f);
    usleep(30000);
    return got;
}
"""


def recipe(folder, hosts):
    """hosts: as in run.hosts."""
    file = folder / "hosts.yaml"
    file.write_text(TINY.read_text().replace("run: {replicas: 2}", f"run: {{hosts: {json.dumps(hosts)}}}"))
    return file


def near(first="", second=""):
    """Two hosts of one network, with their starts."""
    return {"a": {"start": first, "address": "127.0.0.1"}, "b": {"start": second, "address": "127.0.0.2"}}


def told(found):
    return [each for each in found if each["check"] in ("hosts", "network", "ports", "clock")]


def test_hosts_without_fault_are_not_found_fault_with(tmp_path):
    assert told(doctor(tmp_path, recipe(tmp_path, near()), code=0)) == []


def test_a_host_on_which_nothing_can_be_started(tmp_path):
    for start, said in (
        ("no-such-program", "No such file"),
        ("sh -c 'echo no such container >&2; exit 3'", "no such container"),
    ):
        found = doctor(tmp_path, recipe(tmp_path, near(second=start)), code=4)
        one(found, "hosts", "failure", "nothing can be started on host b", said)


def test_an_address_that_its_host_does_not_have(tmp_path):
    hosts = near() | {"b": {"address": "192.0.2.7"}}
    found = doctor(tmp_path, recipe(tmp_path, hosts), code=4)
    one(found, "hosts", "failure", "host b cannot listen at 192.0.2.7 (Cannot assign requested address)")


def test_a_host_without_a_free_port(tmp_path):
    """Two ports in all, and both are taken."""
    taken = """
import os, socket, sys
for port in (40000, 40001):
    os.set_inheritable(socket.create_server(("127.0.0.2", port)).detach(), True)
os.execvp(sys.argv[1], sys.argv[1:])
"""
    inside = 'ip link set lo up\necho "40000 40001" >/proc/sys/net/ipv4/ip_local_port_range\nexec "$@"'
    under = ["unshare", "-n", "sh", "-ec", inside, "sh", sys.executable, "-c", taken]
    shell()  # skips where this cannot be done
    hosts = {"b": {"address": "127.0.0.2"}}
    found = doctor(tmp_path, recipe(tmp_path, hosts), under=under)
    one(found, "ports", "failure", "host b has no free port at 127.0.0.2")


def test_a_clock_that_is_ahead(tmp_path):
    found = doctor(tmp_path, recipe(tmp_path, near(second=f"env {shifted(tmp_path, 90)}")), code=0)
    one(found, "clock", "warning", "the clock of host b is 1 min 30 s ahead of that of host a")


def test_a_host_that_is_far(tmp_path):
    found = doctor(tmp_path, recipe(tmp_path, near(second=f"env {preloaded(tmp_path, SLOW_ANSWER)}")), code=0)
    assert "several times a step" in one(found, "network", "warning", "from host a to b and back takes")["what"]


def test_a_host_with_other_libraries(tmp_path):
    packages = package(tmp_path / "other", "torch", "", Version="2.12.0")
    found = doctor(
        tmp_path,
        recipe(tmp_path, near(second=f"env PYTHONPATH={packages}:{tmp_path.joinpath('light')}:{ROOT}")),
        code=4,
    )
    one(found, "hosts", "failure", "host b has torch 2.12.0, host a has 2.13.0")


def test_a_host_that_does_not_see_the_run(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    start = " ".join(["unshare -m sh -ec", f"'mount -t tmpfs none {hidden}; exec \"$@\"'", "sh"])
    shell()
    found = doctor(tmp_path, recipe(tmp_path, near(second=start)), "--run", hidden / "run", code=4)
    one(found, "hosts", "failure", f"host b does not see what is written to {hidden} here")


@pytest.mark.slow
def test_a_slow_link(tmp_path):
    with lab(2) as hosts:
        hosts.shape(8_000_000)
        found = doctor(tmp_path, recipe(tmp_path, hosts.hosts), code=0)
    for pair in ("h0 to h1", "h1 to h0"):
        said = one(found, "network", "warning", f"the link from host {pair} moves ")["what"]
        assert 500 < float(said.split(" moves ")[1].split(" kB/s")[0]) < 1000
        assert ": gradients and weights take" in said


@pytest.mark.slow
def test_a_host_that_a_firewall_hides(tmp_path):
    """Its answers to one address are dropped, as a firewall does."""
    with lab(2) as hosts:
        ip("-n", f"{hosts.name}h1", "route", "add", "blackhole", "10.77.0.1/32")
        found = doctor(tmp_path, recipe(tmp_path, hosts.hosts), code=4)
    told = one(found, "network", "failure", "host h0 does not reach host h1 at 10.77.0.2 (timed out)")
    assert "firewall" in told["fix"]


@pytest.mark.slow
def test_an_address_that_is_the_loopback_of_each_host(tmp_path):
    with lab(2) as hosts:
        hosts.hosts["h1"]["address"] = "127.0.0.1"
        found = doctor(tmp_path, recipe(tmp_path, hosts.hosts), code=4)
    told = one(found, "network", "failure", "host h0 does not reach host h1 at 127.0.0.1")
    assert "loopback" in told["fix"]


@pytest.mark.slow
def test_a_way_that_long_messages_do_not_pass(tmp_path):
    with lab(2) as hosts:
        for host in hosts.hosts:  # packets are cut where they are made, not behind the narrow place
            ip("-n", hosts.name + host, "link", "set", "eth0", "gso_max_segs", "1")
        ip("link", "set", f"{hosts.name}vh1", "mtu", "600")
        found = doctor(tmp_path, recipe(tmp_path, hosts.hosts), code=4)
    told = one(found, "network", "failure", "short messages from host h0 to h1 pass and long ones do not")
    assert "MTU" in told["fix"]


@pytest.mark.slow
def test_no_probe_is_left(tmp_path):
    with lab(2) as hosts:
        doctor(tmp_path, recipe(tmp_path, hosts.hosts))
        for host in hosts.hosts:
            left = subprocess.run(
                ["ip", "netns", "pids", hosts.name + host], capture_output=True, text=True, check=True
            )
            assert left.stdout.split() == []
        run("ip", "link", "show", hosts.name)


def test_a_stranger_is_not_served(tmp_path):
    """A caller without the token hears nothing."""
    with links._probe(Host("a", (), "127.0.0.1"), "0123456789abcdef" * 2, []) as probe:
        port = links._said(probe, 20)["port"]
        assert "latency" in measure("127.0.0.1", port, b"0123456789abcdef" * 2, False)
        assert "refused" in measure("127.0.0.1", port, b"f" * 32, False)


@pytest.mark.parametrize(("sent", "level"), [(10e6, "ok"), (1e12, "warning")])
def test_a_link_is_as_slow_as_what_has_to_pass_it(sent, level):
    one_way = {"latency": 1e-4, "clock": 0.0, "rate": 1e9}
    about = {"port": 1} | dict.fromkeys(links.SAME, "x")
    seen = links.Survey({"a": about, "b": about}, {("a", "b"): one_way}, [])
    hosts = [Host("a", (), "10.0.0.1"), Host("b", (), "10.0.0.2")]
    assert links.judge(seen, hosts, Need(sent=round(sent)))[0].level == level
