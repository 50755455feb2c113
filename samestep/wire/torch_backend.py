"""Transport through torch.distributed (gloo, NCCL). The only file that imports it.

On one host the replicas meet in a file; gloo's own listeners follow GLOO_SOCKET_IFNAME, which the engine
sets to the loopback interface.
"""

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import FileStore, PrefixStore, ProcessGroup, ProcessGroupGloo, Store, TCPStore, Work
from torch.distributed.distributed_c10d import is_nccl_available

from samestep.errors import PeerLost
from samestep.wire.collective import Collective, Given, Messages, Operation, Tag

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


def has_nccl() -> bool:
    """Whether this torch was built with it."""
    return bool(is_nccl_available())


def meeting(wire: Collective, address: str) -> Store:
    """Where the replicas of a generation find each other. address: of this host, where others reach it; rank 0 alone
    listens there, at a free port that only they are told of.
    """
    word = torch.zeros(64, dtype=torch.uint8)
    others = list(range(1, wire.size))
    if wire.rank:
        wire.exchange(Tag(0, Operation.AGREE, 1), {}, {0: [word]}).wait()
        host, port = json.loads(bytes(word.tolist()))
        return TCPStore(host, port, None, False, TIMEOUT, wait_for_workers=False)
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    told = torch.tensor(list(json.dumps([address, port]).encode().ljust(64)), dtype=torch.uint8)
    store = TCPStore(
        address, port, None, True, TIMEOUT, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=False
    )
    wire.exchange(Tag(0, Operation.AGREE, 1), {rank: [told] for rank in others}, {}).wait()
    return store


class Group:
    """What torch has for tensors of one device, for `beside.py`: NCCL between CUDA devices, gloo elsewhere.

    NCCL's watchdog must not end the process, which the engine does where it has to: see NCCL in launch/child.py.
    """

    def __init__(self, rank: int, size: int, store: Store, device: torch.device) -> None:
        self._device, self._store = device, store
        cuda = device.type == "cuda"
        self._backend: Any = (_nccl if cuda else _gloo)(store, rank, size)
        kind = ProcessGroup.BackendType.NCCL if cuda else ProcessGroup.BackendType.GLOO
        self._group = ProcessGroup(self._store, rank, size)
        self._group._register_backend(torch.device(device.type), kind, self._backend)
        self._group._set_default_backend(kind)

    def connect(self) -> None:
        """By a first exchange of all, which makes the communicator."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a thread has its own
        word = torch.zeros(1, device=self._device)
        TorchWork([self._group.allreduce([word])]).wait()
        word.cpu()

    def start(self, sends: Messages, receives: Messages) -> TorchWork:
        """NCCL takes all at once, so that none waits for another."""
        together = self._backend.supports_coalescing
        if together:
            self._group._start_coalescing(self._device)
        works = [self._group.recv([t], peer, 0) for peer, ts in receives.items() for t in ts]
        works += [self._group.send([t], peer, 0) for peer, ts in sends.items() for t in ts]
        return TorchWork([self._group._end_coalescing(self._device)] if together else works)

    def add(self, tensor: Tensor) -> TorchWork:
        return TorchWork([self._group.allreduce([tensor])])

    def abort(self) -> None:
        """Of this end alone: nothing is said to the others, who may be gone."""
        self._backend.abort()


def _gloo(store: Store, rank: int, size: int) -> Any:
    return ProcessGroupGloo(store, rank, size, TIMEOUT)


def _nccl(store: Store, rank: int, size: int) -> Any:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = TIMEOUT
    return ProcessGroupNCCL(store, rank, size, options)


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


class Shards:
    """The processes of one replica, as torch's default group.

    replica: its number, under which its processes meet in a file that is there for all replicas.
    """

    def __init__(self, rank: int, size: int, meeting_file: Path, replica: int) -> None:
        self.rank, self.size = rank, size
        store = PrefixStore(f"shards-of-{replica}", FileStore(str(meeting_file), -1))
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """As bytes: gloo does not know all dtypes."""
        mine = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(everyone, mine)
        return [each.view(tensor.dtype).view(tensor.shape) for each in everyone]

    def close(self) -> None:
        distributed.destroy_process_group()


def fully_sharded(
    shards: Shards, module: nn.Module, blocks: Sequence[nn.Module], dims: Mapping[nn.Parameter, int], compute: Any
) -> Callable[..., Any]:
    """FSDP2 (Zhao et al., arXiv 2304.11277): of each parameter a part rests here, cut along its dimension in `dims`.
    It is gathered for each of `blocks` when that is computed, the rest of the module for all of `compute`. Gradients
    are summed over the shards. Returns `compute`, to be called in its place.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import Shard

    mesh = distributed.init_device_mesh("cpu", (shards.size,))
    for each in [*blocks, module]:
        fully_shard(each, mesh=mesh, shard_placement_fn=lambda parameter: Shard(dims[parameter]))
        assert isinstance(each, FSDPModule)
        each.set_gradient_divide_factor(1.0)
        each.set_force_sum_reduction_for_comms(True)
    method = "computed_over_shards"
    setattr(module, method, compute)
    register_fsdp_forward_method(module, method)
    inside: Callable[..., Any] = getattr(module, method)

    def computed(*given: Any) -> Any:
        found = inside(*given)
        if not torch.is_grad_enabled():  # no backward follows, after which it would be given back
            module.reshard()  # type: ignore[operator]
        return found

    return computed
