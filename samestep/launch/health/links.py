"""The hosts of a recipe and the links between them: each is asked through a probe that is started there."""

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from samestep import units
from samestep.launch.health.ask import SLICE
from samestep.launch.health.finding import Finding, Need, failure, looked, warning
from samestep.launch.hosts import Host

START, ANSWER = 20.0, 10.0  # seconds that a probe has to start, and to measure one link
SKEW = 1.0  # seconds between two clocks
SLOW = 10e6  # bytes a second: less than 100 Mbit/s
LONG = 5.0  # seconds of a step in which a link is all that works
FAR = 0.02  # seconds there and back: a step waits for several
SAME = ("torch", "samestep", "python", "cpu")  # replica/kernels.py refuses what differs

Facts = dict[str, Any]
Pair = tuple[str, str]


class Survey(NamedTuple):
    """hosts: what each says of itself, see probe.py. links: from -> to. paths: that every host was to see."""

    hosts: Mapping[str, Facts]
    links: Mapping[Pair, Facts]
    paths: Sequence[str]


@contextlib.contextmanager
def mark(folder: Path) -> Iterator[Path]:
    """A file that whoever sees the folder sees."""
    path = folder / f".samestep-doctor-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def survey(hosts: Sequence[Host], paths: Sequence[str]) -> Survey:
    """Every host calls every other; what links move is measured once for each, with nothing else under way."""
    token = secrets.token_hex(16)
    with contextlib.ExitStack() as until_all_have_spoken:
        probes = {host.name: until_all_have_spoken.enter_context(_probe(host, token, paths)) for host in hosts}
        said = {name: _said(probe, START) for name, probe in probes.items()}
        there = [host for host in hosts if "port" in said[host.name]]
        links = {}
        for at, caller in enumerate(there):
            for called in there:
                if caller is not called:
                    rate = "rate" if called is there[(at + 1) % len(there)] else "no"
                    words = f"{called.address} {said[called.name]['port']} {rate}"
                    links[caller.name, called.name] = _asked(probes[caller.name], words)
        return Survey(said, links, paths)


@contextlib.contextmanager
def _probe(host: Host, token: str, paths: Sequence[str]) -> Iterator[subprocess.Popen[bytes] | OSError]:
    command = [*host.start, sys.executable, "-P", "-m", "samestep.launch.health.probe", host.address, *paths]
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as error:
        yield error
        return
    try:
        _tell(process, token)
        yield process
    finally:
        process.kill()
        process.communicate()


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has ended, as its answer will show
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()


def _asked(process: subprocess.Popen[bytes] | OSError, line: str) -> Facts:
    assert not isinstance(process, OSError)  # its port is known
    _tell(process, line)
    return _said(process, ANSWER)


def _said(process: subprocess.Popen[bytes] | OSError, seconds: float) -> Facts:
    """One line of JSON; `error` where it does not come."""
    if isinstance(process, OSError):
        return {"error": str(process)}
    assert process.stdout is not None and process.stderr is not None
    line = b""
    while not line.endswith(b"\n"):
        if not any(select.select([process.stdout], [], [], SLICE)[0] for _ in range(round(seconds / SLICE))):
            return {"error": f"nothing was heard for {seconds:.0f} s"}
        more = os.read(process.stdout.fileno(), 1 << 16)
        if not more:
            complained = process.stderr.read().decode(errors="replace").strip().splitlines()
            return {"error": complained[-1] if complained else f"it ended with code {process.wait()}"}
        line += more
    found: Facts = json.loads(line)
    return found


def judge(seen: Survey, hosts: Sequence[Host], need: Need) -> list[Finding]:
    bad = [finding for host in hosts for finding in _host(host, seen.hosts[host.name], seen.paths)]
    bad += [*_unlike(seen), *_skewed(seen)]
    for (caller, called), facts in seen.links.items():
        address = next(host.address for host in hosts if host.name == called)
        bad += _link(caller, called, address, facts, need)
    measured = [facts for facts in seen.links.values() if facts.get("rate")]
    slowest = min((facts["rate"] for facts in measured), default=0.0)
    farthest = max((facts["latency"] for facts in measured), default=0.0)
    shown = f"{len(hosts)} hosts: links move {units.size(slowest)}/s, there and back in {units.duration(farthest)}"
    return looked("hosts", shown, bad)


def _host(host: Host, facts: Facts, paths: Sequence[str]) -> Iterator[Finding]:
    where = f"run.hosts.{host.name}"
    if "error" in facts:
        what = f"nothing can be started on host {host.name} ({facts['error']})"
        yield failure("hosts", what, f"mend {where}.start: `{' '.join(host.start)} {sys.executable} -V` must work")
    elif facts.get("errno") == 98:  # EADDRINUSE
        what = f"host {host.name} has no free port at {host.address}, where replicas are to be called"
        yield failure("ports", what, "end what holds them (ss -tan), or widen net.ipv4.ip_local_port_range")
    elif "refused" in facts:
        what = f"host {host.name} cannot listen at {host.address} ({facts['refused']})"
        yield failure("hosts", what, f"set {where}.address to one that it has (ip addr)")
    for path, there in zip(paths, facts.get("sees", []), strict=False):
        if not there:
            folder = path.rpartition("/")[0]
            what = f"host {host.name} does not see what is written to {folder} here"
            yield failure("hosts", what, "mount the same disk there: all replicas read the cache and write to the run")


def _unlike(seen: Survey) -> Iterator[Finding]:
    known = {name: facts for name, facts in seen.hosts.items() if "port" in facts}
    for fact in SAME:
        values = {name: facts[fact] for name, facts in known.items()}
        first = next(iter(values), "")
        for other in (name for name, value in values.items() if value != values[first]):
            what = f"host {other} has {fact} {values[other]}, host {first} has {values[first]}: the bits would differ"
            yield failure("hosts", what, "use the same everywhere; such replicas are refused")


def _skewed(seen: Survey) -> Iterator[Finding]:
    """Told once a pair."""
    for (caller, called), facts in seen.links.items():
        ahead = facts.get("clock", 0.0)
        if caller < called and abs(ahead) > SKEW + facts.get("latency", 0.0):
            one, other = (called, caller) if ahead > 0 else (caller, called)
            what = f"the clock of host {one} is {units.duration(abs(ahead))} ahead of that of host {other}"
            yield warning("clock", what, "keep both with NTP (chronyc makestep): times in logs and files are compared")


def _link(caller: str, called: str, address: str, facts: Facts, need: Need) -> Iterator[Finding]:
    reason = facts.get("refused") or facts.get("error")
    if reason:
        loop = address.startswith("127.") or address == "::1"
        fix = (
            f"set run.hosts.{called}.address to one that is not the loopback of each host"
            if loop
            else f"look at firewall and routes: host {caller} must reach {address} at all ports from 1024 on"
        )
        yield failure("network", f"host {caller} does not reach host {called} at {address} ({reason})", fix)
    elif facts.get("rate", SLOW) is None or not facts.get("rate", SLOW):
        what = f"short messages from host {caller} to {called} pass and long ones do not"
        yield failure("network", what, "make the MTU of every device on the way the same: ip link set DEVICE mtu 1500")
    else:
        yield from _slow(caller, called, facts, need)


def _slow(caller: str, called: str, facts: Facts, need: Need) -> Iterator[Finding]:
    rate = facts.get("rate")
    if rate and (rate < SLOW or (need.sent or 0) / rate > LONG):
        long = f": gradients and weights take {units.duration(need.sent / rate)} a step" if need.sent else ""
        what = f"the link from host {caller} to {called} moves {units.size(rate)}/s{long}"
        yield warning("network", what, "samestep pilot tells what pays: sync.wire int8 or int4, or strategy diloco")
    if facts["latency"] > FAR:
        what = f"from host {caller} to {called} and back takes {units.duration(facts['latency'])}, several times a step"
        yield warning("network", what, "bring the hosts nearer, or use sync.strategy diloco")
