"""Rounded sums over real sockets: they are on their way behind backward, and what is rounded off is not lost."""

import socket
import threading

import pytest
import torch

from samestep.sync.rounded import SUMS
from samestep.sync.slices import layout
from samestep.wire import loopback
from samestep.wire.sockets import Sockets

LANES = 4
PLAN = layout([9000, 2500], LANES, bucket=2048)
NAMES = [name for name in SUMS if name != "float32"]


def gradients(seed=0):
    """Of each lane, of magnitudes that differ from block to block."""
    drawn = torch.randn(LANES, PLAN.total, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.logspace(-4, 1, PLAN.total)


def begun(name, wire):
    """The reduction, and its buffers with this replica's lanes in them."""
    reduction = SUMS[name](wire, PLAN, LANES, 1, torch.device("cpu"))
    own = gradients()[reduction.share.span.start : reduction.share.span.stop]
    return reduction, [torch.zeros(PLAN.total), *own.clone()]


def started(reduction, buffers):
    for bucket in range(PLAN.buckets):
        reduction.start(0, bucket, buffers)


def owned(reduction, buffers):
    return [buffers[0][region.start : region.stop] for region in reduction.share.owned]


def alone(name):
    (found,) = loopback.run(1, lambda wire: reduced(name, wire))
    return found


def reduced(name, wire):
    reduction, buffers = begun(name, wire)
    started(reduction, buffers)
    reduction.finish()
    return owned(reduction, buffers)


@pytest.mark.parametrize("name", NAMES)
def test_who_comes_late_holds_up_nobodys_backward(name):
    ends = socket.socketpair()
    results, first_is_through = {}, threading.Event()

    def replica(rank):
        wire = Sockets(rank, 2, {1 - rank: ends[rank]})
        reduction, buffers = begun(name, wire)
        if rank:
            assert first_is_through.wait(10)
        started(reduction, buffers)
        first_is_through.set()
        reduction.finish()
        results[rank] = owned(reduction, buffers)
        both.wait(10)
        wire.close()

    both = threading.Barrier(2)
    threads = [threading.Thread(target=replica, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for bucket, whole in enumerate(alone(name)):
        assert torch.equal(torch.cat([results[0][bucket], results[1][bucket]]), whole)


@pytest.mark.parametrize("name", NAMES)
def test_with_feedback_the_mean_of_many_sums_is_the_gradient_and_without_it_is_not(name):
    true = gradients().double().sum(0)

    def replica(wire):
        errors = {}
        for keeps in (True, False):
            reduction, buffers = begun(name, wire)
            total = torch.zeros(PLAN.total, dtype=torch.float64)
            torch._foreach_zero_(buffers)
            for _ in range(200):
                for lane, gradient in zip(buffers[1:], gradients(), strict=True):
                    lane.add_(gradient) if keeps else lane.copy_(gradient)
                started(reduction, buffers)
                reduction.finish()
                total += buffers[0]
            errors[keeps] = float((total / 200 - true).norm() / true.norm())
        return errors

    (found,) = loopback.run(1, replica)
    # Nodes of the tree are rounded to bfloat16 too, of which nothing is kept.
    assert found[True] < found[False] / (1.5 if name == "bfloat16" else 20)
