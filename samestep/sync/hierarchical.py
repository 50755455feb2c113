"""The exact strategy between hosts that have several replicas: what crosses between two hosts does so once.

The replicas of a host bring their partial sums for each owner on another host together at one of them, which adds up
what the host can add of the tree and sends the rest on. New weights go to one replica of each other host, which passes
them on. The tree is the same, so the bits are those of `exact`. Who does what: `relays.py`. Numbers in few bits
(`rounded.py`) and `fast` travel as if all hosts were one.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samestep.sync import relays, tree
from samestep.sync.exact import WINDOW, add_up, share
from samestep.sync.exchange import News, Propose
from samestep.sync.flat import cut
from samestep.sync.share import holders
from samestep.sync.slices import Layout, Region
from samestep.sync.tree import Node
from samestep.wire.collective import Collective, Loan, Operation, Tag, Work

DEPTH = 2 * WINDOW  # buckets under way: so many inside the host, so many between hosts


class _Inside(NamedTuple):
    """A bucket whose partial sums come together on this host. sums: this replica's, by owner."""

    number: int
    tag: Tag
    loan: Loan
    sums: dict[int, dict[Node, Tensor]]


class _Between(NamedTuple):
    """A bucket whose sums come from other hosts. sums: this host's, of what this replica owns."""

    near: Loan
    far: Loan
    sums: dict[Node, Tensor]
    target: Tensor


class Hierarchical:
    """One replica's exchange of gradients and weights. wire: of several hosts, one of them with several replicas."""

    def __init__(self, wire: Collective, layout: Layout, lanes: int, copies: int, device: torch.device) -> None:
        self._wire, self._layout, self._lanes = wire, layout, lanes
        self.share = share(layout, lanes, wire.rank, wire.size, copies)
        self._plan(wire.hosts, wire.rank, [holders(owner, wire.size, copies) for owner in range(wire.size)])
        largest = [max(layout.owned(b, r, wire.size).size for b in range(layout.buckets)) for r in range(wire.size)]
        inside = sum(len(self._parts[r]) for r in self._near) * sum(largest[o] for o in self._collected[wire.rank])
        between = sum(map(len, self._nodes.values())) * largest[wire.rank]
        # Not written, and so no memory yet, where the transport shows what the peers have.
        self._scratch = torch.empty(DEPTH, inside + between, device=device)
        self._largest = largest[wire.rank]
        self._new = wire.memory(WINDOW * self._largest, self._scratch)
        self._started = 0
        self._fresh: deque[tuple[int, int, Sequence[Tensor]]] = deque()
        self._inside: deque[_Inside] = deque()
        self._between: deque[_Between] = deque()
        self._lent: list[Loan] = []

    def _plan(self, hosts: Sequence[int], rank: int, kept: Sequence[Sequence[int]]) -> None:
        """kept: the holders of what each rank owns."""
        ranks, here = range(len(hosts)), hosts[rank]
        self._parts = [tree.parts(self._lanes, span) for span in tree.spans(self._lanes, len(hosts))]
        self._near = [r for r in relays.on(hosts, here) if r != rank]
        self._collected = {r: relays.collected(hosts, r) for r in relays.on(hosts, here)}
        self._own_nodes = relays.nodes(self._lanes, hosts, here)
        collectors = {host: relays.collector(hosts, host, rank) for host in set(hosts) - {here}}
        self._nodes = {r: relays.nodes(self._lanes, hosts, host) for host, r in collectors.items()}  # from these ranks
        self._holders, self._told = kept[rank], relays.told(hosts, rank, kept[rank])
        self._tellers = [o for o in ranks if rank in relays.told(hosts, o, kept[o])]
        passed = {owner: relays.relays(hosts, owner, kept[owner]) for owner in ranks}
        self._passes = {r: [o for o in ranks if passed[o].get(r) == rank] for r in self._near}
        self._hears = {r: [o for o in ranks if passed[o].get(rank) == r] for r in self._near}

    def start(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        """Never blocks: what has to wait is sent later."""
        self._fresh.append((step, bucket, buffers))
        self._advance(block=False)

    def finish(self) -> None:
        self._advance(block=True)
        while self._between:
            self._complete()
        for loan in self._lent:
            loan.returned()
        self._lent.clear()

    def gather(self, step: int, propose: Propose, buffers: Sequence[Tensor], buckets: Sequence[int]) -> News:
        """What is new elsewhere arrives in the first buffer, whose gradients are not needed there any more."""
        told: deque[tuple[int, Work]] = deque()
        passed: deque[Work] = deque()
        for bucket in buckets:
            if len(told) == WINDOW:
                self._pass_on(step, told, passed, buffers[0])
            told.append((bucket, self._tell(step, bucket, propose, buffers[0])))
        while told:
            self._pass_on(step, told, passed, buffers[0])
        for work in passed:
            work.wait()
        return {}

    def release(self) -> None:
        """Nothing: all is in the first buffer."""

    # Sums

    def _advance(self, block: bool) -> None:
        """A bucket crosses as soon as it has come together; all replicas send buckets in one order."""
        while self._fresh or self._inside:
            if self._fresh and len(self._inside) < WINDOW:
                self._bring_together(*self._fresh.popleft())
            elif not block and not self._can_cross():
                return
            else:
                self._cross(self._inside.popleft())

    def _can_cross(self) -> bool:
        """Whether nothing would have to be waited for."""
        full = len(self._between) == WINDOW
        return self._inside[0].loan.done() and not (full and not self._between[0].far.done())

    def _bring_together(self, step: int, bucket: int, buffers: Sequence[Tensor]) -> None:
        rank, tag = self._wire.rank, Tag(step, Operation.REDUCE, bucket)
        mine = dict(zip(self._parts[rank], buffers, strict=False))
        regions = {owner: self._owned_by(bucket, owner) for owner in range(self._wire.size)}
        sends = {p: [cut(b, regions[o]) for o in self._collected[p] for b in mine.values()] for p in self._near}
        counts = {p: [regions[o].size for o in self._collected[rank] for _ in self._parts[p]] for p in self._near}
        loan = self._wire.borrow(tag, sends, self._places(self._started, 0, counts))
        sums = {o: {node: cut(b, regions[o]) for node, b in mine.items()} for o in self._collected[rank]}
        self._inside.append(_Inside(self._started, tag, loan, sums))
        self._started += 1

    def _cross(self, bucket: _Inside) -> None:
        """What this replica has brought together goes on to its owners."""
        if len(self._between) == WINDOW:
            self._complete()
        number, tag, near, sums = bucket
        target = next(iter(sums[self._wire.rank].values()))
        for peer, arrived in near.wait().items():
            count = len(self._parts[peer])
            for at, owner in enumerate(self._collected[self._wire.rank]):
                sums[owner].update(zip(self._parts[peer], arrived[at * count : (at + 1) * count], strict=True))
        own = sums.pop(self._wire.rank)
        sends = {owner: [tree.fold(n, known, _added) for n in self._own_nodes] for owner, known in sums.items()}
        counts = {peer: [len(target)] * len(nodes) for peer, nodes in self._nodes.items()}
        far = self._wire.borrow(tag, sends, self._places(number, -sum(map(sum, counts.values())), counts))
        self._between.append(_Between(near, far, own, target))

    def _complete(self) -> None:
        near, far, sums, target = self._between.popleft()
        for peer, arrived in far.wait().items():
            sums.update(zip(self._nodes[peer], arrived, strict=True))
        add_up(self._lanes, sums, target)
        far.release()
        far.returned()  # what was sent may lie in the memory of near peers
        near.release()
        self._lent.append(near)

    def _places(self, number: int, at: int, counts: dict[int, list[int]]) -> dict[int, list[Tensor]]:
        """Where messages of so many elements arrive, by peer. at: in the bucket's scratch; negative: from its end."""
        scratch = self._scratch[number % DEPTH]
        at, result = at % max(1, len(scratch)), {}
        for peer, sizes in counts.items():
            result[peer] = list(torch.split(scratch[at : at + sum(sizes)], sizes))
            at += sum(sizes)
        return result

    # New weights

    def _tell(self, step: int, bucket: int, propose: Propose, gathered: Tensor) -> Work:
        start, region = self._largest * (bucket % WINDOW), self.share.owned[bucket]
        new, gradient = self._new[start : start + region.size], cut(gathered, region)
        propose(bucket, new)
        sends = {r: [gradient if r in self._holders else new] for r in self._told}
        receives = {owner: [cut(gathered, self._owned_by(bucket, owner))] for owner in self._tellers}
        return self._wire.exchange(Tag(step, Operation.GATHER, bucket), sends, receives)

    def _pass_on(self, step: int, told: deque[tuple[int, Work]], passed: deque[Work], gathered: Tensor) -> None:
        """The oldest bucket that others have told. What was begun first is waited for first."""
        if len(passed) == WINDOW:
            passed.popleft().wait()
        bucket, arriving = told.popleft()
        arriving.wait()
        sends, receives = (
            {peer: [cut(gathered, self._owned_by(bucket, owner)) for owner in owners] for peer, owners in known.items()}
            for known in (self._passes, self._hears)
        )
        passed.append(self._wire.exchange(Tag(step, Operation.RELAY, bucket), sends, receives))

    def _owned_by(self, bucket: int, rank: int) -> Region:
        return self._layout.owned(bucket, rank, self._wire.size)


def _added(left: Tensor, right: Tensor) -> Tensor:
    return left.add_(right)
