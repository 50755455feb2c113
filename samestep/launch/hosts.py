"""Which replica starts on which host, and how those of different hosts find each other. Pure."""

import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samestep.errors import ClusterError

if TYPE_CHECKING:
    from samestep.recipe.machines import Run

Address = tuple[str, int]  # IP address and port


@dataclass(frozen=True)
class Host:
    """start: stands before a replica's command and executes it there, as the same process. address: where replicas of
    other hosts reach it; empty where there are none. places: replicas that it takes.
    """

    name: str
    start: tuple[str, ...] = ()
    address: str = ""
    places: int = sys.maxsize


HERE = Host("")


def hosts_of(run: "Run") -> tuple[Host, ...]:
    """As a recipe names them, in its order."""
    named = (run.hosts or {}).items()
    return tuple(Host(name, tuple(shlex.split(h.start)), h.address, h.replicas) for name, h in named) or (HERE,)


def choose(hosts: Sequence[Host], taken: Sequence[str], given_up: Collection[str]) -> Host:
    """The first with a free place. taken: the host of each living replica. ClusterError where none is free.

    given_up: hosts that were cut off. A replica that was started there would hold up all others once more.
    """
    for host in hosts:
        if host.name not in given_up and taken.count(host.name) < host.places:
            return host
    cut = f", and {', '.join(sorted(given_up))} cut off" if given_up else ""
    raise ClusterError(f"a replica was to be started, but all places of the hosts are taken{cut}; add one to run.hosts")


def numbers(members: Sequence[int], doors: Mapping[int, tuple[str, Address]]) -> list[int]:
    """The host of each member, numbered from 0 as they appear. doors: see `far`; one that has none has a number too."""
    names = [doors[replica][0] if replica in doors else None for replica in members]
    order = list(dict.fromkeys(names))
    return [order.index(name) for name in names]


def sharers(hosts: Sequence[int]) -> list[int]:
    """The hosts whose members share memory: those with several, and the only one. hosts: of each member."""
    found = sorted(set(hosts))
    return [host for host in found if hosts.count(host) > 1 or len(found) == 1]


def far(me: int, members: Sequence[int], doors: Mapping[int, tuple[str, Address]]) -> list[Address | None]:
    """Where `me` reaches each member over the network, in their order; None where one shares its host.

    doors: host and address of each. A member that has none any more is treated as near: its socket ends at once.
    """
    found = [doors.get(replica) for replica in members]
    mine = doors.get(me)
    return [door[1] if mine and door and door[0] != mine[0] else None for door in found]
