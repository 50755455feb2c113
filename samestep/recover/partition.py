"""Which replicas go on where links between them are cut, and who is given up. Pure functions of numbers.

Everybody has to reach everybody, so those that go on are a set without a broken pair: the largest one, so that the
least is lost, and of several that with the lowest replica numbers. To find it is hard in general (it is a maximum
independent set), but one host that is cut off, or a network in two halves, takes as many steps as there are replicas.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

Pair = frozenset[int]


@dataclass(frozen=True)
class Outcast:
    """Replicas of one host that do not belong to those that go on, and which of these do not reach them."""

    host: str
    replicas: tuple[int, ...]
    by: tuple[int, ...]

    def sentence(self, seconds: float, then: str) -> str:
        return (
            f"host {self.host} ({_names(self.replicas)}) is out of reach of {_names(self.by)} for {seconds:.0f} s{then}"
        )


def outcasts(hosts: Mapping[int, str], broken: Collection[Pair]) -> list[Outcast]:
    """Those to give up, by host. hosts: of all living replicas; broken: pairs of them that do not reach each other."""
    staying = kept(hosts, broken)
    going = sorted(hosts.keys() - staying, key=lambda replica: (hosts[replica], replica))
    found = []
    for host, group in groupby(going, key=lambda replica: hosts[replica]):
        replicas = tuple(group)
        by = [s for s in sorted(staying) if any(frozenset((s, r)) in broken for r in replicas)]
        found.append(Outcast(host, replicas, tuple(by)))
    return found


def kept(replicas: Iterable[int], broken: Collection[Pair]) -> frozenset[int]:
    """The largest set without a broken pair; of several the one with the lowest numbers."""
    neighbours: dict[int, frozenset[int]] = {replica: frozenset() for replica in replicas}
    for left, right in (sorted(pair) for pair in broken):
        neighbours[left] |= {right}
        neighbours[right] |= {left}
    return _largest(neighbours)


def _largest(neighbours: Mapping[int, frozenset[int]]) -> frozenset[int]:
    """The one with the most broken pairs is given up, or all of its neighbours are: whatever leaves more."""
    worst = min(neighbours, key=lambda replica: (-len(neighbours[replica]), replica), default=None)
    if worst is None or not neighbours[worst]:
        return frozenset(neighbours)
    without = _largest(_less(neighbours, {worst}))
    with_it = _largest(_less(neighbours, neighbours[worst]))
    return min(without, with_it, key=lambda kept: (-len(kept), sorted(kept)))


def _less(neighbours: Mapping[int, frozenset[int]], gone: Collection[int]) -> dict[int, frozenset[int]]:
    return {replica: near - frozenset(gone) for replica, near in neighbours.items() if replica not in gone}


def _names(replicas: Collection[int]) -> str:
    return ("replica " if len(replicas) == 1 else "replicas ") + ", ".join(map(str, replicas))
