"""What shared memory promises beyond the laws of every transport."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from samestep.errors import ClusterError, PeerLost
from samestep.wire.collective import Operation, Tag
from samestep.wire.shared_memory import SharedMemory

PAIR = {"generation": 1, "members": [3, 7]}


@contextlib.contextmanager
def two(left=PAIR, right=PAIR):
    """Both ends in this thread: what one sends is there for the other once it looks."""
    ours, theirs = socket.socketpair()
    file = os.memfd_create("test")
    with (
        contextlib.closing(SharedMemory(0, 2, {1: ours}, file, **left)) as one,
        contextlib.closing(SharedMemory(1, 2, {0: theirs}, os.dup(file), **right)) as other,
    ):
        yield one, other


@contextlib.contextmanager
def no_file_can_grow():
    """As `samestep chaos` does it to a replica whose disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def in_memory(wire, count, value):
    return wire.memory(count, torch.empty(0)).fill_(value)


def taken(file):
    """Bytes of memory behind a file."""
    return 512 * os.fstat(file).st_blocks


def carry(one, other, tag, tensor):
    """Send a tensor from one end to the other; what arrives is returned."""
    target = torch.empty_like(tensor)
    work = one.exchange(tag, {1: [tensor]}, {})
    other.exchange(tag, {}, {0: [target]}).wait()
    work.wait()
    return target


def test_what_is_borrowed_is_the_senders_own_memory():
    with two() as (one, other):
        mine = in_memory(one, 5000, 1.0)
        one.borrow(Tag(0, Operation.REDUCE), {1: [mine[1000:3000]]}, {})
        ((seen,),) = other.borrow(Tag(0, Operation.REDUCE), {}, {0: [torch.empty(2000)]}).wait().values()
        mine[1000:] = 2.0
        assert seen.unique().tolist() == [2.0]


def test_a_loan_is_not_returned_before_the_borrower_has_released_it():
    with two() as (one, other):
        lent = one.borrow(Tag(0, Operation.REDUCE), {1: [in_memory(one, 5000, 1.0)]}, {})
        loan = other.borrow(Tag(0, Operation.REDUCE), {}, {0: [torch.empty(5000)]})
        loan.wait()
        came_back = threading.Event()
        waiting = threading.Thread(target=lambda: (lent.returned(), came_back.set()))
        waiting.start()
        assert not came_back.wait(0.1)
        loan.release()
        loan.returned()
        waiting.join(5)
        assert came_back.is_set()


def test_who_ends_has_told_what_it_released_so_that_others_go_on_without_it():
    with two() as (one, other):
        one.borrow(Tag(0, Operation.GATHER), {1: [in_memory(one, 5000, 1.0)]}, {})
        loan = other.borrow(Tag(0, Operation.GATHER), {}, {0: [torch.empty(5000)]})
        loan.wait()
        loan.release()
        other.close()
        while not one._peers[1].gone:
            one._take_in(1000)
        assert one._ended() is None


def test_what_comes_before_it_is_due_is_kept():
    """Whoever waits for what it lent may find the peer's next message first."""
    with two() as (one, other):
        first, then = Tag(0, Operation.REDUCE), Tag(0, Operation.GATHER)
        lent = one.borrow(first, {1: [in_memory(one, 5000, 1.0)]}, {})
        loan = other.borrow(first, {}, {0: [torch.empty(5000)]})
        loan.wait()
        other.exchange(then, {0: [torch.full((8,), 2.0)]}, {})
        loan.release()
        other.flush()
        lent.returned()
        target = torch.empty(8)
        one.exchange(then, {}, {1: [target]}).wait()
        assert target.unique().tolist() == [2.0]


def test_a_sender_hears_at_once_that_what_came_early_is_copied():
    """The receiver has nothing to wait for, and may be at other things for long after."""
    with two() as (one, other):
        tag = Tag(0, Operation.GATHER)
        work = one.exchange(tag, {1: [in_memory(one, 5000, 1.0)]}, {})
        other.look()
        other.exchange(tag, {}, {0: [torch.empty(5000)]}).wait()
        one.look()
        assert work.done()


def test_memory_may_grow_after_a_peer_has_seen_some_of_it():
    with two() as (one, other):
        for step in range(5):
            mine = in_memory(one, 3000 * (step + 1), float(step))
            assert torch.equal(carry(one, other, Tag(step, Operation.GATHER), mine), mine)


def test_what_lies_elsewhere_is_copied_to_memory_that_is_used_again():
    with two() as (one, other):
        used = set()
        for step in range(6):
            values = torch.full((50_000 - 1000 * step,), float(step))
            assert torch.equal(carry(one, other, Tag(step, Operation.HANDOVER), values), values)
            used.add(taken(one._segments._file))
        assert len(used) == 1 and used.pop() < 300_000


def test_one_copy_serves_all_peers():
    file = os.memfd_create("test")
    ends = [socket.socketpair() for _ in range(2)]
    with (
        contextlib.closing(SharedMemory(0, 3, {1: ends[0][0], 2: ends[1][0]}, file)) as one,
        contextlib.closing(SharedMemory(1, 3, {0: ends[0][1]}, os.dup(file))) as first,
        contextlib.closing(SharedMemory(2, 3, {0: ends[1][1]}, os.dup(file))) as second,
    ):
        tag, values, targets = Tag(0, Operation.GATHER), torch.arange(50_000.0), [torch.empty(50_000) for _ in range(2)]
        work = one.exchange(tag, {1: [values], 2: [values]}, {})
        for wire, target in zip((first, second), targets, strict=True):
            wire.exchange(tag, {}, {0: [target]}).wait()
        work.wait()
        assert all(torch.equal(target, values) for target in targets) and taken(file) < 300_000
        assert one.bytes_sent == 2 * values.nbytes


def test_where_no_memory_can_be_had_all_is_as_before_and_it_is_said_once():
    with two() as (one, other), no_file_can_grow():
        with pytest.warns(RuntimeWarning, match=r"no memory to share could be had \(File too large\)") as warned:
            mine, more = one.memory(3_000_000, torch.empty(0)), one.memory(10, torch.empty(0))
        assert mine.count_nonzero() == more.count_nonzero() == 0 and len(warned) == 1
        assert one.shortage and not other.shortage
        mine.fill_(3.0)
        thread = threading.Thread(target=lambda: one.exchange(Tag(0, Operation.GATHER), {1: [mine]}, {}).wait())
        thread.start()
        target = torch.empty_like(mine)
        other.exchange(Tag(0, Operation.GATHER), {}, {0: [target]}).wait()
        thread.join()
        assert torch.equal(target, mine) and one.bytes_sent == mine.nbytes


def test_a_copy_for_which_no_memory_can_be_had_goes_through_the_socket():
    with two() as (one, other), no_file_can_grow():
        values = torch.arange(20_000.0)
        with pytest.warns(RuntimeWarning, match="no memory to share"):
            assert torch.equal(carry(one, other, Tag(0, Operation.HANDOVER), values), values)


def test_memory_outlives_the_transport_and_the_peer_for_as_long_as_it_is_used():
    with two() as (one, other):
        mine = in_memory(one, 5000, 1.0)
        one.borrow(Tag(0, Operation.REDUCE), {1: [mine]}, {})
        loan = other.borrow(Tag(0, Operation.REDUCE), {}, {0: [torch.empty(5000)]})
        one.close()
        ((seen,),) = loan.wait().values()
        other.close()
        del mine
        assert seen.add_(1.0).unique().tolist() == [2.0]


def test_a_message_of_another_generation_is_refused_and_lands_nowhere():
    with two(PAIR | {"generation": 3}, PAIR | {"generation": 2}) as (new, old):
        target = torch.full((5000,), 7.0)
        old.exchange(Tag(5, Operation.READY), {0: [torch.zeros(5000)]}, {})
        with pytest.raises(ClusterError, match=r"replica 7 sent .*generation 2.*generation 3"):
            new.exchange(Tag(5, Operation.READY), {}, {1: [target]}).wait()
        assert target.unique().tolist() == [7.0]


KILLED = """
import contextlib, os, socket, sys, torch
from samestep.wire.collective import Operation, Tag
from samestep.wire.shared_memory import SharedMemory
wire = SharedMemory(1, 2, {0: socket.socket(fileno=int(sys.argv[1]))}, int(sys.argv[2]))
mine = wire.memory(1_000_000, torch.empty(0)).fill_(5.0)
for step in range(1_000_000):
    loan = wire.borrow(Tag(step, Operation.REDUCE), {0: [mine]}, {0: [mine]})
    loan.wait()
    loan.release()
    loan.returned()
"""


@contextlib.contextmanager
def a_peer_in_another_process():
    ours, theirs = socket.socketpair()
    file = os.memfd_create("test")
    passed = theirs.fileno(), os.dup(file)
    command = [sys.executable, "-c", KILLED, *map(str, passed)]
    with subprocess.Popen(command, pass_fds=passed) as process:
        theirs.close()
        os.close(passed[1])
        with contextlib.closing(SharedMemory(0, 2, {1: ours}, file)) as wire:
            yield process, wire
        process.kill()


def test_a_peer_killed_in_the_middle_is_seen_at_once_and_nothing_is_left_of_it():
    named = sorted(Path("/dev/shm").iterdir())
    with a_peer_in_another_process() as (process, wire):
        mine, killed, seen = in_memory(wire, 1_000_000, 1.0), 0.0, None
        with pytest.raises(PeerLost, match="replica 1 went away"):
            for step in range(1_000_000):
                if step == 50:
                    process.send_signal(signal.SIGKILL)
                    killed = time.monotonic()
                loan = wire.borrow(Tag(step, Operation.REDUCE), {1: [mine]}, {1: [mine]})
                ((seen,),) = loan.wait().values()
                loan.release()
                loan.returned()
        assert killed > 0 and time.monotonic() - killed < 0.5
        assert seen.unique().tolist() == [5.0]  # what it had is still there
    assert sorted(Path("/dev/shm").iterdir()) == named
