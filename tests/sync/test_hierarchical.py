"""Where replicas of a host send for each other, the bits are those of the plain exchange, and fewer cross."""

import os
import socket
import threading
from itertools import combinations

import pytest
import torch

from samestep.errors import PeerLost
from samestep.plan import traffic
from samestep.plan.traffic import Division
from samestep.sync.exact import Exact
from samestep.sync.hierarchical import Hierarchical
from samestep.sync.share import holders
from samestep.sync.slices import layout
from samestep.wire import loopback
from samestep.wire.joined import Joined

STEPS = 2
DIVISIONS = [
    [0, 0, 1],
    [0, 1, 1],
    [0, 1, 0],
    [0, 0, 1, 1],
    [0, 1, 0, 1],
    [0, 1, 1, 0],
    [2, 0, 0, 0],
    [0, 0, 0, 1, 1],
    [0, 0, 1, 1, 2, 2],
    [0, 1, 2, 0, 1, 2],
    [0, 1, 0, 0, 2, 0, 1],
    [0, 0, 0, 0, 1, 1, 1, 1],
]


def plan(lanes, size=9000):
    return layout([size, 700, 5], lanes, bucket=1024)


def lane(found, step, number):
    """A lane's gradient, of values whose sum depends on the order of additions."""
    made = torch.Generator().manual_seed(100 * step + number)
    return torch.randn(found.total, generator=made) * 10.0 ** torch.randint(-6, 6, (found.total,), generator=made)


def summed(exchange, found, step, like):
    """This replica's partial sums, in buffers of the wire."""
    buffers = [like(found.total, torch.empty(0)) for _ in range(1 + max(turn.buffer for turn in exchange.share.turns))]
    for number, turn in zip(exchange.share.span, exchange.share.turns, strict=True):
        at = turn.buffer
        buffers[at].copy_(lane(found, step, number))
        for _ in range(turn.merges):
            buffers[at - 1].add_(buffers[at])
            at -= 1
    return buffers


def steps(kind, wire, found, lanes, copies):
    """Of each step the gradient owned, by bucket, and all that was gathered. New weights are twice the gradient."""
    exchange, results = kind(wire, found, lanes, copies, torch.device("cpu")), []
    for step in range(STEPS):
        buffers = summed(exchange, found, step, wire.memory)
        for bucket in range(found.buckets):
            exchange.start(step, bucket, buffers)
        exchange.finish()
        owned = [buffers[0][region.start : region.stop].clone() for region in exchange.share.owned]

        def double(bucket, out, owned=owned):
            torch.mul(owned[bucket], 2, out=out)

        exchange.gather(step, double, buffers, range(found.buckets))
        results.append((owned, buffers[0].clone()))
    return results


def right(found, results, size, copies):
    """Whether each rank has what it needs: the gradient of what it keeps, the new weights of the rest."""
    for step in range(STEPS):
        for bucket in range(found.buckets):
            for owner in range(size):
                region, kept = found.owned(bucket, owner, size), holders(owner, size, copies)
                for rank in range(size):
                    gradient = results[owner][step][0][bucket]
                    wanted = gradient if rank in kept else 2 * gradient
                    assert torch.equal(results[rank][step][1][region.start : region.stop], wanted)


@pytest.mark.parametrize("hosts", DIVISIONS, ids=lambda hosts: "".join(map(str, hosts)))
@pytest.mark.parametrize("lanes", [8, 11, 16])
def test_each_bit_is_that_of_the_plain_exchange(hosts, lanes):
    found, size = plan(lanes), len(hosts)
    alone = loopback.run(1, lambda wire: steps(Exact, wire, found, lanes, 1))[0]
    for copies in (1, 2, size):
        results = loopback.run(size, lambda wire, n=copies: steps(Hierarchical, wire, found, lanes, n), hosts=hosts)
        right(found, results, size, copies)
        for step, (whole, _) in enumerate(alone):
            for bucket in range(found.buckets):
                mine = torch.cat([results[rank][step][0][bucket] for rank in range(size)])
                assert torch.equal(mine.view(torch.int32), whole[bucket].view(torch.int32))


def joined(hosts, body):
    """Call body(wire) in a thread a replica; results, or errors in their place, by rank."""
    size, ends, results = len(hosts), [{} for _ in hosts], [None] * len(hosts)
    for a, b in combinations(range(size), 2):
        ends[a][b], ends[b][a] = socket.socketpair()
    files = {host: os.memfd_create("test") for host in set(hosts)}
    all_done = threading.Barrier(size)

    def replica(rank):
        near = {peer: end for peer, end in ends[rank].items() if hosts[peer] == hosts[rank]}
        far = {peer: end for peer, end in ends[rank].items() if peer not in near}
        wire = Joined(rank, near, far, os.dup(files[hosts[rank]]), hosts)
        try:
            results[rank] = body(wire)
        except PeerLost as error:
            wire.close()
            results[rank] = error
        all_done.wait(60)
        wire.close()

    threads = [threading.Thread(target=replica, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for file in files.values():
        os.close(file)
    return results


@pytest.mark.parametrize(
    "hosts", [[0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1, 1]], ids=lambda hosts: "".join(map(str, hosts))
)
@pytest.mark.parametrize("copies", [1, 2])
def test_over_shared_memory_and_sockets_too(hosts, copies):
    """In pieces larger than what goes with its header, so that sums are added in the memory of peers."""
    found, size = layout([300_000, 700], 8), len(hosts)
    results = joined(hosts, lambda wire: steps(Hierarchical, wire, found, 8, copies))
    plain = loopback.run(size, lambda wire: steps(Exact, wire, found, 8, copies))
    right(found, results, size, copies)
    for mine, theirs in zip(results, plain, strict=True):
        for (_, one), (_, other) in zip(mine, theirs, strict=True):
            assert torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("hosts", DIVISIONS, ids=lambda hosts: "".join(map(str, hosts)))
@pytest.mark.parametrize("copies", [1, 2, 8])
def test_between_hosts_and_inside_them_as_many_bytes_are_sent_as_are_predicted(hosts, copies):
    found = plan(8)

    def body(wire):
        steps(Hierarchical, wire, found, 8, copies)
        return wire.bytes_sent - wire.far.bytes_sent, wire.far.bytes_sent

    division = Division(found, 8, len(hosts), copies, hosts=tuple(hosts))
    everything = range(found.buckets)
    for rank, (near, far) in enumerate(joined(hosts, body)):
        words = traffic.words(division, 8) // (len(hosts) - 1)  # to each peer
        abroad = sum(hosts[peer] != hosts[rank] for peer in range(len(hosts)))
        assert far == STEPS * (traffic.between(division, rank) - abroad * words)
        assert near + far == STEPS * sum(part(division, rank, everything) for part in (traffic.sums, traffic.weights))


def test_two_hosts_of_four_send_each_other_a_quarter_of_what_they_would_send_each_for_itself():
    found, hosts = plan(8), (0, 0, 0, 0, 1, 1, 1, 1)
    passing, plain = Division(found, 8, 8, hosts=hosts), Division(found, 8, 8)
    abroad = [(rank, peer) for rank in range(8) for peer in range(8) if hosts[rank] != hosts[peer]]
    words = len(abroad) * traffic.words(plain, 8) // 7
    each_for_itself = sum(traffic.to(plain, *pair) for pair in abroad) - words
    assert (
        sum(traffic.between(passing, rank) for rank in range(8)) - words == each_for_itself / 4 == 2 * 4 * found.total
    )
