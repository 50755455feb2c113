"""How tensors on a device travel: by NCCL where each replica has a device of its own, else through the host.

NCCL takes no two replicas of one device, and would be no faster there. What is decided follows from what all have told,
so that all decide the same.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import xxhash

from samestep.wire.beside import Beside
from samestep.wire.collective import Collective, Operation, Tag, all_gather
from samestep.wire.side import Side
from samestep.wire.staged import Staged


class Seat(NamedTuple):
    """What a replica computes on. device: the same number for the same GPU, wherever it is. nccl: whether torch has it
    and the recipe lets it be used.
    """

    device: int
    nccl: bool


def apart(seats: Sequence[Seat]) -> bool:
    """Whether NCCL can join them."""
    return len(seats) > 1 and len({seat.device for seat in seats}) == len(seats) and all(seat.nccl for seat in seats)


def shared(seats: Sequence[Seat]) -> str | None:
    """In a sentence, where replicas share devices."""
    most = max(Counter(seat.device for seat in seats).values())
    count = len({seat.device for seat in seats})
    if most == 1:
        return None
    return (
        f"{len(seats)} replicas share {count} GPU{'s' if count > 1 else ''}, up to {most} on one; it is no faster than "
        f"one replica a GPU, and the model is the same"
    )


def carried(
    wire: Collective, device: torch.device, nccl: bool, address: str, over: Callable[[], bool]
) -> tuple[Collective, list[Seat]]:
    """The transport for tensors of `device` over that of the host, which it takes over; and what all compute on.

    address: of this host, where others reach it. over: whether the generation is known to be. PeerLost.
    """
    if device.type == "cpu":
        return wire, []
    from samestep.wire import torch_backend

    seats = told(wire, Seat(_number(device), nccl and torch_backend.has_nccl()))
    if not apart(seats):
        return Staged(wire, Side(device)), seats
    group = torch_backend.Group(wire.rank, wire.size, torch_backend.meeting(wire, address or "127.0.0.1"), device)
    return Beside(wire, group, device, over), seats


def told(wire: Collective, mine: Seat) -> list[Seat]:
    """Those of all replicas, by rank."""
    word = torch.tensor([mine.device, int(mine.nccl)], dtype=torch.int64)
    words = [word if rank == wire.rank else torch.empty_like(word) for rank in range(wire.size)]
    all_gather(wire, Tag(0, Operation.AGREE, 2), word, words).wait()
    return [Seat(device, bool(nccl)) for device, nccl in (word.tolist() for word in words)]


def _number(device: torch.device) -> int:
    """Of its UUID, which no two GPUs share."""
    found: int = xxhash.xxh3_64_intdigest(str(torch.cuda.get_device_properties(device).uuid).encode())
    return found - (1 << 63)
