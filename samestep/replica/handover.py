"""The state moves to those that have to hold it in a new generation, and what arrives is checked by digest.

Nothing that a replica holds changes: the new moments stand beside the old ones until all replicas have theirs, so that
another death in the middle of it loses nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor

from samestep.errors import ClusterError
from samestep.recover import transfer
from samestep.recover.transfer import Move
from samestep.replica.carried import Units
from samestep.replica.state import Kept, Moments, State
from samestep.sync.flat import cut
from samestep.sync.share import Share
from samestep.sync.slices import Layout, Region
from samestep.wire.collective import Collective, Operation, Tag

RECORD = 4096  # bytes of what a joining replica is told beside weights and moments
Tensors = dict[int, list[Tensor]]  # by peer


class Handover:
    """before: of each rank of the old generation the rank in this one, None if it is gone."""

    def __init__(
        self, wire: Collective, layout: Layout, state: State, before: Sequence[int | None], copies: int, step: int
    ) -> None:
        self._wire, self._layout, self._state = wire, layout, state
        self._before, self._copies, self._step = before, copies, step
        self._digests: dict[int, list[int]] = {peer: [] for peer in self._peers()}
        self._wanted: dict[int, list[Tensor]] = {peer: [] for peer in self._peers()}

    def kept(self, share: Share) -> Kept:
        """What this replica has to keep of `share`. ClusterError where a part arrives changed, PeerLost."""
        new = self._state.blank(share)
        self._move_moments(new.moments)
        if self._state.carried:
            self._move_units(new.units, self._state.carried.units)
        self._check()
        return new

    def _move_units(self, new: Units, units: int) -> None:
        for unit, source, target in transfer.units(units, self._before, self._wire.size):
            values = self._state.kept.units.get(unit, [])
            if source == target == self._wire.rank:
                new[unit] = values  # they do not change until all have theirs
            else:
                sends = {target: values} if source == self._wire.rank else {}
                receives = {source: new[unit]} if target == self._wire.rank else {}
                self._exchange(self._layout.buckets + 2 + unit, sends, receives)

    def _move_moments(self, new: Moments) -> None:
        for bucket in range(self._layout.buckets):
            sends, receives = self._of_weights(bucket)
            moves = transfer.moments(self._layout, self._before, self._wire.size, self._copies, bucket)
            for move in moves:
                self._place(move, new, sends, receives)
            self._exchange(bucket, sends, receives)

    def record(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What the first that was there before knows, told to those that join; others get their own back."""
        (first, *_), joined = self._sources(), self._joined()
        record = torch.zeros(RECORD, dtype=torch.uint8)
        if self._wire.rank == first:
            record = torch.frombuffer(bytearray(json.dumps(dict(known)).encode().ljust(RECORD)), dtype=torch.uint8)
        sends = {rank: [record] for rank in joined} if self._wire.rank == first else {}
        receives = {first: [record]} if self._wire.rank in joined else {}
        self._wire.exchange(self._tag(self._layout.buckets + 1), sends, receives).wait()
        found: dict[str, Any] = json.loads(bytes(record.tolist())) if receives else dict(known)
        return found

    def _of_weights(self, bucket: int) -> tuple[Tensors, Tensors]:
        sends: Tensors = {peer: [] for peer in self._peers()}
        receives: Tensors = {peer: [] for peer in self._peers()}
        part = cut(self._state.weights, self._layout.bucket_region(bucket))
        for source, target in transfer.weights(self._before, self._wire.size, bucket):
            if source == self._wire.rank:
                sends[target].append(part)
            if target == self._wire.rank:
                receives[source].append(part)
        return sends, receives

    def _place(self, move: Move, new: Moments, sends: Tensors, receives: Tensors) -> None:
        mine, rank = [], self._wire.rank
        if move.source == rank:
            mine = [cut(kept, _inside(move.region, move.within)) for kept in self._state.moments[move.within]]
        if move.target == rank:
            places = [cut(kept, _inside(move.region, move.to)) for kept in new[move.to]]
            if move.source == rank:
                torch._foreach_copy_(places, mine)
            else:
                receives[move.source] += places
        elif move.source == rank:
            sends[move.target] += mine

    def _exchange(self, bucket: int, sends: Tensors, receives: Tensors) -> None:
        self._wire.exchange(self._tag(bucket), sends, receives).wait()
        for peer in self._peers():
            self._digests[peer] += map(_digest, sends.get(peer, []))
            self._wanted[peer] += receives.get(peer, [])

    def _check(self) -> None:
        """Senders tell the digests of what they sent; they must be those of what has arrived."""
        sends = {peer: [torch.tensor(found)] for peer, found in self._digests.items() if found}
        told = {peer: torch.zeros(len(there), dtype=torch.int64) for peer, there in self._wanted.items() if there}
        receives = {peer: [tensor] for peer, tensor in told.items()}
        self._wire.exchange(self._tag(self._layout.buckets), sends, receives).wait()
        for peer, tensor in told.items():
            if tensor.tolist() != list(map(_digest, self._wanted[peer])):
                raise ClusterError(
                    f"the state that replica {peer} handed over after step {self._step} arrived changed (its digest "
                    f"differs); look at the network and memory of both hosts, then samestep resume"
                )

    def _tag(self, bucket: int) -> Tag:
        return Tag(self._step, Operation.HANDOVER, bucket)

    def _peers(self) -> list[int]:
        return [rank for rank in range(self._wire.size) if rank != self._wire.rank]

    def _sources(self) -> list[int]:
        return sorted(rank for rank in self._before if rank is not None)

    def _joined(self) -> list[int]:
        return [rank for rank in range(self._wire.size) if rank not in self._sources()]


def _inside(region: Region, within: Region) -> Region:
    return Region(region.start - within.start, region.stop - within.start)


def _digest(tensor: Tensor) -> int:
    """XXH3, 64 bits, as a signed integer."""
    found: int = xxhash.xxh3_64_intdigest(memoryview(tensor.detach().cpu().view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return found - (1 << 63)
