"""Who passes on what where replicas are on several hosts, so that it crosses between two of them once. Pure.

`hosts` is the number of each rank's host, by rank. The replicas of a host share the work of passing on: owners on other
hosts are dealt to them in turn.
"""

from collections.abc import Collection, Sequence

from samestep.sync import tree
from samestep.sync.tree import Node


def several(hosts: Sequence[int]) -> bool:
    """Whether there is anything to pass on: hosts, of which one has several replicas."""
    return 1 < len(set(hosts)) < len(hosts)


def on(hosts: Sequence[int], host: int) -> list[int]:
    """The ranks on a host."""
    return [rank for rank, known in enumerate(hosts) if known == host]


def elsewhere(hosts: Sequence[int], host: int) -> list[int]:
    """The ranks on other hosts."""
    return [rank for rank, known in enumerate(hosts) if known != host]


def collector(hosts: Sequence[int], host: int, owner: int) -> int:
    """Who on a host brings together its partial sums for an owner on another one."""
    ranks = on(hosts, host)
    return ranks[elsewhere(hosts, host).index(owner) % len(ranks)]


def collected(hosts: Sequence[int], rank: int) -> list[int]:
    """The owners for whom `rank` brings together the partial sums of its host, in rank order; it is one of them."""
    host = hosts[rank]
    return [o for o, known in enumerate(hosts) if o == rank or (known != host and collector(hosts, host, o) == rank)]


def nodes(lanes: int, hosts: Sequence[int], host: int) -> list[Node]:
    """The largest subtrees inside the lanes of a host, left to right: the partial sums that leave it."""
    spans, runs = tree.spans(lanes, len(hosts)), list[range]()
    for span in (spans[rank] for rank in on(hosts, host)):
        if runs and runs[-1].stop == span.start:
            runs[-1] = range(runs[-1].start, span.stop)
        else:
            runs.append(span)
    return [part for run in runs for part in tree.parts(lanes, run)]


def chains(hosts: Sequence[int], owner: int, holders: Collection[int]) -> list[list[int]]:
    """The ranks of other hosts that get the same from an owner: the first of each list from the owner itself, the rest
    from the first.

    holders: those that keep the moments of what it owns; they get its gradient, all others its new weights.
    """
    found = []
    for host in sorted(set(hosts) - {hosts[owner]}):
        turn = elsewhere(hosts, host).index(owner)
        for keep in (True, False):
            ranks = [rank for rank in on(hosts, host) if (rank in holders) == keep]
            first = turn % max(1, len(ranks))
            found += [ranks[first:] + ranks[:first]] if ranks else []
    return found


def told(hosts: Sequence[int], owner: int, holders: Collection[int]) -> list[int]:
    """The ranks to which an owner itself tells what is new."""
    near = [rank for rank in on(hosts, hosts[owner]) if rank != owner]
    return sorted([*near, *(chain[0] for chain in chains(hosts, owner, holders))])


def relays(hosts: Sequence[int], owner: int, holders: Collection[int]) -> dict[int, int]:
    """Of each rank that hears from somebody else what is new at an owner, from whom."""
    return {rank: chain[0] for chain in chains(hosts, owner, holders) for rank in chain[1:]}
