"""What a transport can do: move tensors between replicas, be cancelled, count its bytes.

Replicas are numbered 0 .. size - 1 within a *generation*, the life of one set of replicas. Every message
carries a tag, and both sides must agree on it before bytes move: a mismatch is an error that names both.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Operation(IntEnum):
    REDUCE = 1  # partial sums to their owners
    GATHER = 2  # new slices to everybody
    SCALARS = 3  # losses, norms, presence of gradients
    EVALUATE = 4
    AGREE = 5  # fingerprints at the start
    REFERENCE = 6  # log-probabilities under the reference model
    READY = 7  # all that the commit of a step needs has arrived
    HANDOVER = 8  # weights and moments to those that have to hold them in a new generation
    BEGIN = 9  # all that a generation needs has arrived
    END = 10  # nothing more is to be done
    INTACT = 11  # what rests here has not changed
    ORIGIN = 12  # where a loss or gradient that is not finite comes from
    PILOT = 13  # how long exchanges take
    SCALES = 14  # of blocks of whole numbers, before the partial sums
    RELAY = 15  # new slices from other hosts, passed on inside one


class Tag(NamedTuple):
    step: int
    operation: Operation
    bucket: int = 0

    def __str__(self) -> str:
        return f"{self.operation.name.lower()} of bucket {self.bucket} in step {self.step}"


Messages = Mapping[int, Sequence["Tensor"]]  # by peer


class Work(Protocol):
    """An exchange under way. The tensors belong to it until it is done."""

    def wait(self) -> None:
        """Block until done. PeerLost if a peer went away or the transport was cancelled."""

    def done(self) -> bool:
        """Whether `wait` would return at once."""


class Loan(Protocol):
    """An exchange under way of which nothing is copied that need not be: what arrives may be the senders' own memory.

    It may be read, and written where no replica needs it any more, until it is released.
    """

    def wait(self) -> Messages:
        """Block until all has arrived, and give it out by peer. PeerLost as for `Work`."""

    def done(self) -> bool:
        """Whether `wait` would return at once."""

    def release(self) -> None:
        """What has arrived is not needed any more."""

    def returned(self) -> None:
        """Block until the peers have released what was sent to them: from then on it may be changed."""


class Collective(Protocol):
    """One replica's end of the transport. Tensors are contiguous; each pair of replicas keeps one order.

    hosts: by rank, the number of its host.
    """

    rank: int
    size: int

    @property
    def hosts(self) -> Sequence[int]: ...

    @property
    def bytes_sent(self) -> int:
        """Payload only."""

    @property
    def shortage(self) -> str:
        """Why memory was not shared that could have been; empty: nothing was wanting."""

    def memory(self, count: int, like: "Tensor") -> "Tensor":
        """Zeros of the dtype and device of `like`, of which the transport need not make copies to send them."""

    def exchange(self, tag: Tag, sends: Messages, receives: Messages) -> Work:
        """Start sending to and receiving from peers: all-to-all, all-gather and scatter are cases of it."""

    def borrow(self, tag: Tag, sends: Messages, receives: Messages) -> Loan:
        """The same, where it is enough to see what the peers have. `receives` may be left unused."""

    def cancel(self, reason: str) -> None:
        """Fail all work under way and to come with PeerLost(reason). Callable from any thread."""

    def close(self) -> None:
        """Give all resources back. Peers that still wait see PeerLost."""


class Given:
    """A loan from a transport that copies: what arrives is in the tensors given for it."""

    def __init__(self, work: Work, receives: Messages) -> None:
        self._work, self._receives = work, receives

    def wait(self) -> Messages:
        self._work.wait()
        return self._receives

    def done(self) -> bool:
        return self._work.done()

    def release(self) -> None:
        """Nobody else's memory was used."""

    def returned(self) -> None:
        self._work.wait()


class Reducing(Collective, Protocol):
    """A transport that also adds: what the `fast` strategy asks for."""

    def all_reduce(self, tag: Tag, tensor: "Tensor") -> Work:
        """Start adding a tensor over all replicas in place, in the backend's own order of additions."""


def all_gather(wire: Collective, tag: Tag, mine: "Tensor", others: Sequence["Tensor"]) -> Work:
    """Send `mine` to everybody and receive replica r's into `others[r]` (own place unused)."""
    peers = [r for r in range(wire.size) if r != wire.rank]
    return wire.exchange(tag, {r: [mine] for r in peers}, {r: [others[r]] for r in peers})


def everybody_ready(wire: Collective, tag: Tag) -> None:
    """Return once all replicas have called it. What a replica waits for here nobody can miss any more: where one of
    them passes, the others can move on by themselves, whoever dies. PeerLost where that cannot be known.
    """
    import torch

    word = torch.ones(1, dtype=torch.uint8)
    all_gather(wire, tag, word, [torch.zeros_like(word) for _ in range(wire.size)]).wait()
