"""What names lead to, looked up in a process of its own: a name server that is gone takes long to tell.

python -m samestep.launch.health.names NAME...      prints the addresses of each, or the error, and the time
"""

import ipaddress
import json
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from samestep.launch.health.finding import Finding, failure, looked, warning

PATIENCE = 8.0  # seconds until nothing more is waited for
LONG = 2.0  # seconds to look up all of them
ANSWER = 2.0  # seconds that another host has to answer a call
PORT = 45_000  # a free one on most machines, amid those at which replicas are called

Found = Mapping[str, str | list[str]]


class Call(NamedTuple):
    """of: the name. reason: why nobody answers there; a refusal is an answer."""

    of: str
    address: str
    here: bool
    reason: str


def look(names: Sequence[str]) -> dict[str, Any]:
    began = time.monotonic()
    return {"found": {name: _addresses(name) for name in names}, "seconds": time.monotonic() - began}


def _addresses(name: str) -> str | list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return str(error.strerror)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def own(said: Mapping[str, Any], name: str) -> list[Finding]:
    """What was said of this machine's own `name` and of localhost, among others."""
    if "error" in said:
        return [failure("names", f"names cannot be looked up ({said['error']})", "see the other findings")]
    if "late" in said or said["seconds"] > LONG:
        what = f"looking up {name} takes more than {said.get('late', LONG):.0f} s"
        return [warning("names", what, f"add `127.0.1.1 {name}` to /etc/hosts, or mend /etc/resolv.conf")]
    found = said["found"]
    fix = "mend /etc/hosts: `127.0.0.1 localhost` and this machine's address with its name"
    mine, local = found[name], found["localhost"]
    bad = []
    if isinstance(local, str) or not any(ipaddress.ip_address(_bare(each)).is_loopback for each in local):
        bad.append(warning("names", f"localhost leads to {_said(local)}, not to this machine", fix))
    if isinstance(mine, str):
        bad.append(warning("names", f"this machine's own name {name} leads nowhere ({mine})", fix))
    elif not any(map(is_here, mine)):
        bad.append(warning("names", f"this machine's own name {name} leads to {_said(mine)}, another machine", fix))
    return looked("names", f"{name} leads to {_said(mine)}", bad)


def others(found: Found, calls: Sequence[Call]) -> list[Finding]:
    """Of the hosts that were named on the command line."""
    bad = [_unknown(name, said) for name, said in found.items() if isinstance(said, str)]
    bad += [finding for call in calls if (finding := _call(call))]
    return looked("hosts", ", ".join(f"{call.of} answers at {call.address}" for call in calls), bad)


def _unknown(name: str, reason: str) -> Finding:
    return failure("hosts", f"{name} leads nowhere ({reason})", "add it to /etc/hosts or to your name server")


def _call(call: Call) -> Finding | None:
    if call.here and ipaddress.ip_address(_bare(call.address)).is_loopback and call.of != call.address:
        what = f"{call.of} leads to {call.address}, the loopback of each machine, where no other host reaches it"
        return failure("hosts", what, f"give {call.of} its address in /etc/hosts, on all hosts")
    if call.reason:
        what = f"{call.of} ({call.address}) does not answer ({call.reason})"
        return failure("hosts", what, "start it, mend the route, or open ports 1024-65535 between the hosts (firewall)")
    return None


def call(name: str, address: str) -> Call:
    here, reason = is_here(address), ""
    try:
        socket.create_connection((address, PORT), ANSWER).close()
    except ConnectionRefusedError:
        pass
    except OSError as error:
        reason = str(error.strerror or error)
    return Call(name, address, here, "" if here else reason)


def is_here(address: str) -> bool:
    """Whether it is one of this machine's own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _bare(address: str) -> str:
    return address.partition("%")[0]


def _said(found: str | list[str]) -> str:
    return f"nothing ({found})" if isinstance(found, str) else ", ".join(found)


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1:])))
