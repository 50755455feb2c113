"""The laws of every transport, each with its replicas as threads of this process."""

import contextlib
import os
import socket
import threading
import time
from functools import partial
from itertools import combinations

import pytest
import torch
from polled import Polled

from samestep.errors import ClusterError, PeerLost
from samestep.wire import loopback
from samestep.wire.beside import Beside
from samestep.wire.collective import Operation, Tag, all_gather
from samestep.wire.joined import Joined
from samestep.wire.meeting import Door, meet
from samestep.wire.shared_memory import SharedMemory
from samestep.wire.side import Side
from samestep.wire.sockets import Sockets
from samestep.wire.staged import Staged
from samestep.wire.torch_backend import TorchBackend, meeting


def pairs(size):
    ends = [{} for _ in range(size)]
    for a, b in combinations(range(size), 2):
        ends[a][b], ends[b][a] = socket.socketpair()
    return ends


def sockets(size, folder):
    ends = pairs(size)
    return [lambda rank=rank: Sockets(rank, size, ends[rank]) for rank in range(size)]


def shared_memory(size, folder):
    ends, first = pairs(size), os.memfd_create("test")
    files = [first] + [os.dup(first) for _ in range(size - 1)]
    return [lambda rank=rank: SharedMemory(rank, size, ends[rank], files[rank]) for rank in range(size)]


def joined(hosts, size, folder):
    """hosts: of each rank, by rank; of as many as are asked for."""
    ends, shared = pairs(size), {host: os.memfd_create("test") for host in set(hosts[:size])}
    files = [os.dup(shared[host]) for host in hosts[:size]]
    for file in shared.values():
        os.close(file)

    def make(rank):
        near = {peer: end for peer, end in ends[rank].items() if hosts[peer] == hosts[rank]}
        far = {peer: end for peer, end in ends[rank].items() if peer not in near}
        return Joined(rank, near, far, files[rank], hosts[:size])

    return [lambda rank=rank: make(rank) for rank in range(size)]


class Unwatched:
    """All that meet here come."""

    def calls(self, rank, answered):
        pass

    def reached(self, rank, connection):
        pass

    def look(self):
        pass


def tcp(size, folder):
    doors = [Door("127.0.0.1") for _ in range(size)]
    addresses = {rank: ("127.0.0.1", door.port) for rank, door in enumerate(doors)}

    def make(rank):
        others = {r: address for r, address in addresses.items() if r != rank}
        with contextlib.closing(doors[rank]):
            return Sockets(rank, size, meet(doors[rank], rank, others, 0, b"secret", Unwatched()))

    return [lambda rank=rank: make(rank) for rank in range(size)]


def gloo(size, folder):
    return [lambda rank=rank: TorchBackend(rank, size, folder / "meeting") for rank in range(size)]


def threads(size, folder):
    wires = loopback.connect(size)
    return [lambda rank=rank: wires[rank] for rank in range(size)]


def staged(inner, size, folder):
    """As for tensors of a device, which here is the processor."""
    made = inner(size, folder)
    return [lambda make=make: Staged(make(), Side(torch.device("cpu"))) for make in made]


def beside(size, folder):
    """As for tensors of a device with a transport of its own, whose part gloo takes."""
    ends = pairs(size)

    def make(rank):
        inner = Sockets(rank, size, ends[rank])
        group = Polled(rank, size, meeting(inner, "127.0.0.1"))
        return Beside(inner, group, torch.device("cpu"), lambda: False)

    return [lambda rank=rank: make(rank) for rank in range(size)]


TRANSPORTS = {
    "sockets": sockets,
    "tcp": tcp,
    "shared memory": shared_memory,
    "joined, near": partial(joined, [0, 0, 1, 1]),
    "joined, far": partial(joined, [0, 1, 0, 1]),
    "torch": gloo,
    "loopback": threads,
    "staged, sockets": partial(staged, sockets),
    "staged, shared memory": partial(staged, shared_memory),
    "staged, joined": partial(staged, partial(joined, [0, 0, 1, 1])),
    "staged, loopback": partial(staged, threads),
    "staged, torch": partial(staged, gloo),
    "beside, torch": beside,
}
REDUCING = ("torch", "loopback", "staged, torch", "staged, loopback", "beside, torch")
GLOO = ("torch", "staged, torch", "beside, torch")  # which takes what does not fit in silence, and is never woken


@pytest.fixture(params=TRANSPORTS)
def transport(request):
    return request.param


def run(transport, size, folder, body):
    """Call body(wire) in a thread a replica; results, or errors in their place, by rank."""
    results = [None] * size
    together = threading.Barrier(size)

    def replica(rank, make):
        with contextlib.closing(make()) as wire:
            try:
                results[rank] = body(wire)
            except Exception as error:
                results[rank] = error
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(30)

    threads = [threading.Thread(target=replica, args=item) for item in enumerate(TRANSPORTS[transport](size, folder))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def others(wire):
    return [r for r in range(wire.size) if r != wire.rank]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_an_all_to_all_delivers_to_each_what_was_meant_for_it(transport, size, tmp_path):
    def body(wire):
        sends = {r: [torch.full((1000 + r,), 10.0 * wire.rank + r)] for r in others(wire)}
        receives = {r: [torch.empty(1000 + wire.rank)] for r in others(wire)}
        wire.exchange(Tag(0, Operation.REDUCE), sends, receives).wait()
        return {r: set(tensors[0].tolist()) for r, tensors in receives.items()}

    for rank, received in enumerate(run(transport, size, tmp_path, body)):
        assert received == {r: {10.0 * r + rank} for r in range(size) if r != rank}


def test_exchanges_under_way_together_keep_their_order(transport, tmp_path):
    def body(wire):
        received = [torch.empty(50_000) for _ in range(20)]
        works = [
            wire.exchange(
                Tag(3, Operation.REDUCE, b),
                {r: [torch.full((50_000,), float(b))] for r in others(wire)},
                {r: [received[b]] for r in others(wire)},
            )
            for b in range(20)
        ]
        for work in works:
            work.wait()
        return [tensor.unique().tolist() for tensor in received]

    assert run(transport, 2, tmp_path, body) == [[[float(b)] for b in range(20)]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8])
def test_every_dtype_arrives_bit_for_bit(transport, dtype, tmp_path):
    values = torch.arange(64, dtype=torch.uint8).repeat(8).view(dtype)

    def body(wire):
        received = [torch.zeros_like(values) for _ in range(wire.size)]
        all_gather(wire, Tag(1, Operation.GATHER), values, received).wait()
        return [r.view(torch.uint8).tolist() for i, r in enumerate(received) if i != wire.rank]

    assert run(transport, 3, tmp_path, body) == [[values.view(torch.uint8).tolist()] * 2] * 3


def test_messages_larger_than_any_kernel_buffer_pass_both_ways(transport, tmp_path):
    def body(wire):
        mine = torch.arange(6_000_000, dtype=torch.float32) + wire.rank
        received = [torch.empty_like(mine) for _ in range(2)]
        all_gather(wire, Tag(0, Operation.GATHER), mine, received).wait()
        other = 1 - wire.rank
        return torch.equal(received[other], torch.arange(6_000_000, dtype=torch.float32) + other)

    assert run(transport, 2, tmp_path, body) == [True, True]


def test_payload_bytes_are_counted(transport, tmp_path):
    def body(wire):
        all_gather(wire, Tag(0, Operation.GATHER), torch.zeros(100), [torch.zeros(100)] * 3).wait()
        return wire.bytes_sent

    assert run(transport, 3, tmp_path, body) == [800] * 3


def test_cancel_fails_what_comes_later(transport, tmp_path):
    def body(wire):
        if wire.rank == 0:
            wire.cancel("replica 1 is silent")
            wire.exchange(Tag(0, Operation.REDUCE), {}, {1: [torch.empty(4)]}).wait()

    error = run(transport, 2, tmp_path, body)[0]
    assert isinstance(error, PeerLost) and "replica 1 is silent" in str(error)


@pytest.mark.parametrize("transport", [t for t in TRANSPORTS if t not in GLOO])
def test_cancel_wakes_a_replica_that_waits(transport, tmp_path):
    """Not so with gloo, which nothing wakes: there the engine ends the process."""

    def body(wire):
        if wire.rank == 0:
            threading.Timer(0.1, wire.cancel, ["replica 1 is silent"]).start()
            wire.exchange(Tag(0, Operation.REDUCE), {}, {1: [torch.empty(4)]}).wait()

    error = run(transport, 2, tmp_path, body)[0]
    assert isinstance(error, PeerLost) and "replica 1 is silent" in str(error)


@pytest.mark.parametrize("transport", [t for t in TRANSPORTS if t not in GLOO])
def test_a_peer_that_closes_is_lost_to_those_that_wait_for_it(transport, tmp_path):
    def body(wire):
        if wire.rank == 1:
            wire.close()
        else:
            wire.exchange(Tag(0, Operation.REDUCE), {}, {1: [torch.empty(4)]}).wait()

    error = run(transport, 2, tmp_path, body)[0]
    assert isinstance(error, PeerLost) and "replica 1 went away" in str(error)


@pytest.mark.parametrize("transport", [t for t in TRANSPORTS if t not in GLOO])
@pytest.mark.parametrize(
    ("tag", "tensor"),
    [
        (Tag(4, Operation.REDUCE, 1), torch.zeros(8)),
        (Tag(5, Operation.REDUCE, 2), torch.zeros(8)),
        (Tag(5, Operation.GATHER, 1), torch.zeros(8)),
        (Tag(5, Operation.REDUCE, 1), torch.zeros(4)),
        (Tag(5, Operation.REDUCE, 1), torch.zeros(8, dtype=torch.bfloat16)),
        (Tag(5, Operation.REDUCE, 1), torch.zeros(16, dtype=torch.bfloat16)),
    ],
    ids=["step", "bucket", "operation", "size", "dtype", "dtype of as many bytes"],
)
def test_replicas_that_disagree_get_an_error_and_no_garbage(transport, tag, tensor, tmp_path):
    def body(wire):
        if wire.rank == 0:
            wire.exchange(tag, {1: [tensor]}, {}).wait()
            return
        target = torch.full((8,), 7.0)
        try:
            wire.exchange(Tag(5, Operation.REDUCE, 1), {}, {0: [target]}).wait()
        finally:
            assert target.tolist() == [7.0] * 8

    error = run(transport, 2, tmp_path, body)[1]
    assert isinstance(error, ClusterError) and not isinstance(error, PeerLost)
    assert "reduce of bucket 1 in step 5" in str(error) and "replica 0 sent" in str(error)


@pytest.mark.parametrize("transport", REDUCING)
def test_an_all_reduce_adds_over_all_replicas(transport, tmp_path):
    def body(wire):
        tensor = torch.full((1000,), float(wire.rank + 1))
        wire.all_reduce(Tag(0, Operation.REDUCE), tensor).wait()
        return tensor.unique().tolist()

    assert run(transport, 3, tmp_path, body) == [[6.0]] * 3


def made(wire, count, value):
    """A tensor of the transport's own memory."""
    tensor = wire.memory(count, torch.empty(0))
    assert tensor.count_nonzero() == 0
    return tensor.fill_(value)


@pytest.mark.parametrize("count", [100, 200_000])
def test_a_loan_shows_what_each_peer_has(transport, count, tmp_path):
    def body(wire):
        mine = made(wire, 4 * count, wire.rank)
        sends = {r: [mine[r * count : (r + 1) * count].add_(10.0 * r)] for r in others(wire)}
        loan = wire.borrow(Tag(0, Operation.REDUCE), sends, {r: [torch.full((count,), -1.0)] for r in others(wire)})
        found = {r: tensors[0].unique().tolist() for r, tensors in loan.wait().items()}
        loan.release()
        loan.returned()
        return found

    for rank, found in enumerate(run(transport, 3, tmp_path, body)):
        assert found == {r: [10.0 * rank + r] for r in range(3) if r != rank}


def test_what_was_lent_may_be_changed_once_it_is_returned_and_the_borrower_has_seen_it_as_it_was(transport, tmp_path):
    def body(wire):
        mine, seen = made(wire, 200_000, 1.0), []
        for step in range(4):
            loan = wire.borrow(
                Tag(step, Operation.REDUCE),
                {r: [mine] for r in others(wire)},
                {r: [torch.empty(200_000)] for r in others(wire)},
            )
            ((arrived,),) = loan.wait().values()
            time.sleep(0.02 * wire.rank)
            seen.append(arrived.unique().tolist())
            loan.release()
            loan.returned()
            mine.add_(1.0)
        return seen

    assert run(transport, 2, tmp_path, body) == [[[1.0], [2.0], [3.0], [4.0]]] * 2


def test_what_has_arrived_may_be_written_until_it_is_released(transport, tmp_path):
    """So that sums need no memory of their own."""

    def body(wire):
        mine = made(wire, 100_000, 1.0 + wire.rank)
        loan = wire.borrow(
            Tag(0, Operation.REDUCE),
            {r: [mine] for r in others(wire)},
            {r: [torch.empty(100_000)] for r in others(wire)},
        )
        ((arrived,),) = loan.wait().values()
        total = arrived.add_(1.0).sum().item() if wire.rank == 0 else None
        loan.release()
        loan.returned()
        return total

    assert run(transport, 2, tmp_path, body)[0] == 300_000.0


def test_loans_and_exchanges_under_way_together_keep_their_order(transport, tmp_path):
    def body(wire):
        buffers = [made(wire, 5_000, 10 * b + wire.rank) for b in range(6)]
        targets = [torch.empty(5_000) for _ in buffers]
        peer = 1 - wire.rank
        opened = [
            (wire.borrow if b % 2 else wire.exchange)(Tag(1, Operation.REDUCE, b), {peer: [mine]}, {peer: [target]})
            for b, (mine, target) in enumerate(zip(buffers, targets, strict=True))
        ]
        found = []
        for b in range(6):
            arrived = opened[b].wait()
            found.append((arrived[peer][0] if b % 2 else targets[b])[0].item())
        for loan in opened[1::2]:
            loan.release()
            loan.returned()
        return found

    assert run(transport, 2, tmp_path, body) == [[1, 11, 21, 31, 41, 51], [0, 10, 20, 30, 40, 50]]


@pytest.mark.parametrize(
    "transport", ["sockets", "shared memory", "joined, near", "joined, far", "staged, sockets", "staged, shared memory"]
)
def test_what_came_before_a_peer_closed_can_still_be_used(transport, tmp_path):
    """A replica that passes the last barrier leaves, though others still wait for somebody else there."""
    closed, tag = threading.Event(), Tag(0, Operation.END)

    def body(wire):
        mine, received = torch.full((16,), 1.0 + wire.rank), [torch.zeros(16) for _ in range(3)]
        if wire.rank == 0:
            wire.exchange(tag, {1: [mine]}, {1: [received[1]]}).wait()
            closed.wait(10)
            time.sleep(0.1)
            wire.exchange(tag, {2: [mine]}, {2: [received[2]]}).wait()
        else:
            all_gather(wire, tag, mine, received).wait()
        if wire.rank == 1:
            wire.close()
            closed.set()
        return [tensor[0].item() for tensor in received]

    assert run(transport, 3, tmp_path, body) == [[0.0, 2.0, 3.0], [1.0, 0.0, 3.0], [1.0, 2.0, 0.0]]


@pytest.mark.parametrize("transport", [t for t in TRANSPORTS if t not in GLOO])
def test_cancel_wakes_a_replica_at_once_that_waits_for_what_it_lent(transport, tmp_path):
    def body(wire):
        mine, began = made(wire, 3_000_000, 1.0), time.monotonic()
        if wire.rank == 0:
            loan = wire.borrow(Tag(0, Operation.REDUCE), {1: [mine]}, {1: [torch.empty(4)]})
            threading.Timer(0.1, wire.cancel, ["replica 1 is silent"]).start()
            with pytest.raises(PeerLost, match="replica 1 is silent"):
                loan.returned()
        return time.monotonic() - began

    assert run(transport, 2, tmp_path, body)[0] < 10
