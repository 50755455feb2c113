"""Transport through torch.distributed (gloo, NCCL). The only file that imports it.

On one host the replicas meet in a file; gloo's own listeners follow GLOO_SOCKET_IFNAME, which the engine
sets to the loopback interface.
"""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from torch import Tensor
from torch.distributed import FileStore, PrefixStore, ProcessGroupGloo, Work

from samestep.errors import PeerLost
from samestep.wire.collective import Given, Messages, Tag

TIMEOUT = timedelta(minutes=30)  # death is learnt from the engine, never from here


class TorchWork:
    def __init__(self, works: Sequence[Work]) -> None:
        self._works = list(works)

    def wait(self) -> None:
        try:
            while self._works:
                self._works[0].wait()
                self._works.pop(0)  # a second wait for the same never returns
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise PeerLost(f"a replica went away during an exchange ({first})") from error

    def done(self) -> bool:
        return all(work.is_completed() for work in self._works)


class TorchBackend:
    """A process group of its own, not the default one: a process may hold one a generation."""

    def __init__(self, rank: int, size: int, meeting_file: Path, generation: int = 0) -> None:
        self.rank, self.size, self.bytes_sent, self.shortage = rank, size, 0, ""
        self.hosts = [0] * size
        self._store = FileStore(str(meeting_file), -1)  # -1: the file's life is the engine's business
        prefixed = PrefixStore(f"generation-{generation}", self._store)
        self._group = ProcessGroupGloo(prefixed, rank, size, TIMEOUT)
        self._cancelled = ""

    def memory(self, count: int, like: Tensor) -> Tensor:
        return like.new_zeros(count)

    def borrow(self, tag: Tag, sends: Messages, receives: Messages) -> Given:
        return Given(self.exchange(tag, sends, receives), receives)

    def exchange(self, tag: Tag, sends: Messages, receives: Messages) -> TorchWork:
        self._check()
        works = [self._group.recv([t], peer, 0) for peer, ts in receives.items() for t in ts]
        works += [self._group.send([t], peer, 0) for peer, ts in sends.items() for t in ts]
        self.bytes_sent += sum(t.nbytes for ts in sends.values() for t in ts)
        return TorchWork(works)

    def all_reduce(self, tag: Tag, tensor: Tensor) -> TorchWork:
        self._check()
        self.bytes_sent += 2 * tensor.nbytes * (self.size - 1) // self.size  # a ring's share
        return TorchWork([self._group.allreduce([tensor])])

    def cancel(self, reason: str) -> None:
        """Only what starts later fails: gloo cannot be woken (torch 2.13), so the engine ends the process."""
        self._cancelled = reason

    def close(self) -> None:
        del self._group, self._store

    def _check(self) -> None:
        if self._cancelled:
            raise PeerLost(self._cancelled)
