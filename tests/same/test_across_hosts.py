"""Replicas on several hosts give the model of one replica, whatever happens to the links between them."""

import contextlib
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from lab import lab

from tests.same.test_survivors_go_on import ALONE, formed, lived, same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return lived(tmp_path_factory.mktemp("whole") / "run", {}, replicas=1)


@pytest.fixture(scope="module")
def four_hosts():
    with lab(4) as made:
        yield made


@pytest.fixture
def hosts(four_hosts):
    yield four_hosts
    for host in four_hosts.hosts:
        four_hosts.mend(host)


class Cutter:
    """Cuts hosts off after a step, and mends the links after `seconds`, if it is to."""

    def __init__(self, hosts, names, seconds=None, step=4):
        self.hosts, self.names, self.seconds, self.step = hosts, names, seconds, step
        self.times = []  # of the cut, then of each committed step and each new generation

    def __call__(self, event):
        if self.times and event["event"] in ("step", "formed"):
            self.times.append(time.monotonic())
        if event["event"] == "step" and event["step"] == self.step and not self.times:
            self.times.append(time.monotonic())
            for name in self.names:
                self.hosts.cut(name)
            if self.seconds:
                threading.Timer(self.seconds, lambda: [self.hosts.mend(name) for name in self.names]).start()

    @property
    def pause(self):
        """Seconds of the longest time without a step or a new generation."""
        return max(after - before for before, after in pairwise(self.times))


def told(events, kind, *keys):
    found = [tuple(event[key] for key in keys) for event in events if event["event"] == kind]
    return [values[0] if len(keys) == 1 else values for values in found]


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_any_number_of_hosts_gives_the_same_model(tmp_path, undisturbed, hosts, replicas):
    found = lived(tmp_path / "run", {}, replicas, **{"run.hosts": hosts.hosts})
    same(found, undisturbed)
    assert set(told(found[1], "started", "host")) == {f"h{i}" for i in range(replicas)}


def places(hosts, **counts):
    """So many replicas on each of these hosts."""
    return {name: hosts.hosts[name] | {"replicas": count} for name, count in counts.items()}


@pytest.mark.parametrize("state", ["sharded", "mirrored", "replicated"])
@pytest.mark.parametrize("counts", [{"h0": 2, "h1": 2}, {"h0": 1, "h1": 2}], ids=["2+2", "1+2"])
def test_hosts_with_several_replicas_give_the_same_model(tmp_path, undisturbed, hosts, counts, state):
    given = {"run.hosts": places(hosts, **counts), "sync.state": state}
    same(lived(tmp_path / "run", {}, sum(counts.values()), **given), undisturbed)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_replica_of_a_host_with_several_is_killed_and_the_others_go_on(tmp_path, undisturbed, hosts, rank):
    found = lived(tmp_path / "run", {5: [rank]}, 4, **{"run.hosts": places(hosts, h0=2, h1=2)}, **ALONE)
    same(found, undisturbed)
    assert formed(found[1]) == [(3, False)]


def test_a_replica_of_a_host_with_several_is_replaced_there(tmp_path, hosts):
    enough = {"steps": 100, "recover.checkpoint_every": 50, "recover.digest_every": 25, "evaluate.every": 0}
    found = lived(tmp_path / "run", {2: [1]}, 4, **{"run.hosts": places(hosts, h0=2, h1=2)}, **enough)
    assert formed(found[1]) == [(3, False), (4, False)]
    same(found, lived(tmp_path / "whole", {}, replicas=1, **enough))


def test_a_link_that_is_cut_for_two_seconds_costs_little_more(tmp_path, undisturbed, hosts):
    cutter = Cutter(hosts, ["h2"], 2.0)
    found = lived(tmp_path / "run", {}, 4, cutter, **{"run.hosts": hosts.hosts})
    same(found, undisturbed)
    assert not told(found[1], "left", "reason") and not told(found[1], "silent", "reason")
    assert 2 <= cutter.pause < 5


@pytest.mark.parametrize("host", ["h0", "h2"])
def test_a_host_that_is_cut_off_is_named_and_the_others_go_on_within_ten_seconds(tmp_path, undisturbed, hosts, host):
    cutter = Cutter(hosts, [host])
    found = lived(tmp_path / "run", {}, 4, cutter, **{"run.hosts": hosts.hosts}, **ALONE)
    same(found, undisturbed)
    number = int(host[1])
    ((replica, reason),) = told(found[1], "left", "replica", "reason")
    others = ", ".join(str(other) for other in range(4) if other != number)
    assert replica == number
    assert reason.startswith(f"host {host} (replica {number}) is out of reach of replicas {others} for ")
    assert told(found[1], "unreachable", "host") == [host] and not told(found[1], "silent", "reason")
    assert formed(found[1]) == [(3, False)]
    assert cutter.pause < 11


def test_the_most_that_reach_each_other_go_on(tmp_path, undisturbed, hosts):
    """Three on one host, two on another and one on a third, of which none reaches the others."""
    cutter, state = Cutter(hosts, ["h1", "h2"]), {"sync.state": "replicated"}
    found = lived(tmp_path / "run", {}, 6, cutter, **{"run.hosts": places(hosts, h1=2, h2=1, h3=3)}, **state, **ALONE)
    same(found, undisturbed)
    assert sorted(told(found[1], "left", "replica")) == [0, 1, 2]
    assert sorted(told(found[1], "unreachable", "host")) == ["h1", "h2"]
    assert formed(found[1]) == [(3, False)]


def test_a_replacement_starts_on_a_host_that_is_reached(tmp_path, hosts):
    changes = {"steps": 80, "recover.checkpoint_every": 50, "evaluate.every": 0, "run.hosts": hosts.hosts}
    summary, events = lived(tmp_path / "run", {}, 3, Cutter(hosts, ["h1"]), **changes)
    assert summary.steps == 80 and formed(events) == [(2, False), (3, False)]
    assert {e["host"] for e in events if e["event"] == "started" and e["generation"] == 3} == {"h0", "h2", "h3"}


STRANGER = """
import os, socket, sys
opened = []
for line in sys.stdin:
    address, port = line.split()
    for said in (b"", os.urandom(3), os.urandom(4000), b"samestep" + bytes(48)):
        try:
            opened.append(socket.create_connection((address, int(port)), timeout=2))
            opened[-1].sendall(said)
        except OSError:
            continue
        print(address, flush=True)
    opened = opened[-400:]
"""


@contextlib.contextmanager
def strangers(hosts, calls):
    """A process on the last host that calls every port at which a replica listens, again and again, with garbage."""
    command = [*hosts.hosts["h3"]["start"].split(), sys.executable, "-c", STRANGER]
    stranger = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    reader = threading.Thread(target=lambda: calls.extend(stranger.stdout))
    over = threading.Event()
    looker = threading.Thread(target=_look, args=(stranger, over))
    for thread in (reader, looker):
        thread.start()
    try:
        yield
    finally:
        over.set()
        looker.join()
        stranger.stdin.close()
        stranger.kill()
        stranger.wait()
        reader.join()
        stranger.stdout.close()


def _look(stranger, over):
    while not over.wait(0.05):
        for replica in psutil.Process().children():
            with contextlib.suppress(OSError):
                for line in listening(replica.pid) if replica.pid != stranger.pid else ():
                    print(*line, file=stranger.stdin, flush=True)


def listening(pid):
    """Address and port at which somebody listens on the host of a process."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    ends = [row[1].split(":") for row in rows if row[3] == "0A"]
    return [(".".join(str(byte) for byte in reversed(bytes.fromhex(host))), int(port, 16)) for host, port in ends]


def test_strangers_that_call_the_replicas_change_nothing(tmp_path, undisturbed, hosts):
    """From before they meet, while they work, and when those that are left after a death meet again."""
    calls, names = [], {name: hosts.hosts[name] for name in ("h0", "h1", "h2")}
    with strangers(hosts, calls):
        found = lived(tmp_path / "run", {5: [1]}, 3, **{"run.hosts": names}, **ALONE)
    same(found, undisturbed)
    assert formed(found[1]) == [(2, False)]
    assert {call.strip() for call in calls} == {host["address"] for host in names.values()}
