"""What near and far replicas promise each other beyond the laws of every transport: an end of either part is seen."""

import contextlib
import os
import socket
import threading
import time
from itertools import combinations

import pytest
import torch

from samestep.errors import ClusterError, PeerLost
from samestep.wire.collective import Operation, Tag
from samestep.wire.joined import Joined

HOSTS = [0, 0, 1]  # replica 1 is near to replica 0, replica 2 is far
REDUCE, GATHER = Tag(0, Operation.REDUCE), Tag(0, Operation.GATHER)
SOON = 5.0  # seconds


@contextlib.contextmanager
def three():
    """All ends in this process."""
    ends, file = [{} for _ in HOSTS], os.memfd_create("test")
    for a, b in combinations(range(3), 2):
        ends[a][b], ends[b][a] = socket.socketpair()
    near = [{1: ends[0][1]}, {0: ends[1][0]}, {}]
    far = [{2: ends[0][2]}, {2: ends[1][2]}, {0: ends[2][0], 1: ends[2][1]}]
    files = [file, os.dup(file), os.memfd_create("other")]
    with contextlib.ExitStack() as stack:
        made = (Joined(rank, near[rank], far[rank], files[rank], HOSTS, 4, [5, 6, 7]) for rank in range(3))
        wires = [stack.enter_context(contextlib.closing(wire)) for wire in made]
        guard = threading.Timer(SOON, lambda: [wire.cancel("nothing else has ended it") for wire in wires])
        stack.callback(guard.cancel)
        guard.start()
        yield wires


def later(call, *args):
    """While somebody waits."""
    timer = threading.Timer(0.1, call, args)
    timer.start()


def ends(wait, error, match):
    """Whether a wait is ended by an error, and soon."""
    began = time.monotonic()
    with pytest.raises(error, match=match) as found:
        wait()
    assert found.type is error
    assert time.monotonic() - began < SOON


def blank(*ranks):
    return {rank: [torch.empty(8)] for rank in ranks}


def from_both(wire, kind):
    return getattr(wire, kind)(REDUCE, {}, blank(1, 2))


@pytest.mark.parametrize("kind", ["exchange", "borrow"])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_replica_that_goes_away_ends_the_wait_for_another_one(kind, lost):
    """Whether it was near or far, and the other one far or near."""
    with three() as wires:
        later(wires[lost].close)
        ends(from_both(wires[0], kind).wait, PeerLost, f"replica {5 + lost} went away")


def test_one_that_has_gone_before_ends_it_too():
    for lost in (1, 2):
        with three() as wires:
            wires[lost].close()
            time.sleep(0.1)
            ends(from_both(wires[0], "exchange").wait, PeerLost, f"replica {5 + lost} went away")


def test_a_far_one_that_goes_away_ends_the_wait_for_what_was_lent_to_a_near_one():
    with three() as wires:
        mine = wires[0].memory(5000, torch.empty(0))
        loan = wires[0].borrow(REDUCE, {1: [mine]}, {})
        wires[0].exchange(GATHER, {}, blank(2))
        later(wires[2].close)
        ends(loan.returned, PeerLost, "replica 7 went away")


def test_a_near_one_that_goes_away_ends_the_wait_for_a_far_one_where_something_is_due_from_it():
    with three() as wires:
        wires[0].exchange(REDUCE, {}, blank(1))
        later(wires[1].close)
        ends(wires[0].exchange(GATHER, {}, blank(2)).wait, PeerLost, "replica 6 went away")


def test_what_a_far_one_says_wrongly_is_told_as_such():
    with three() as wires:
        work = from_both(wires[0], "exchange")
        later(lambda: wires[2].exchange(GATHER, {0: [torch.zeros(8)]}, {}))
        ends(work.wait, ClusterError, r"replica 7 sent .* gather of bucket 0 in step 0 \(generation 4\)")


def test_all_that_comes_after_a_failure_fails_in_both_parts():
    with three() as wires:
        wires[2].close()
        ends(wires[0].exchange(REDUCE, {}, blank(2)).wait, PeerLost, "replica 7")
        wires[1].exchange(GATHER, {0: [torch.zeros(8)]}, {})
        ends(wires[0].exchange(GATHER, {}, blank(1)).wait, PeerLost, "replica 7")


def test_cancel_reaches_both_parts():
    for rank in (1, 2):
        with three() as wires:
            later(wires[0].cancel, "replica 9 is silent")
            ends(wires[0].exchange(REDUCE, {}, blank(rank)).wait, PeerLost, "replica 9 is silent")
            with pytest.raises(PeerLost, match="replica 9 is silent"):
                wires[0].exchange(REDUCE, {}, blank(3 - rank)).wait()


def test_cancel_after_the_end_is_of_no_consequence():
    with three() as wires:
        wires[0].close()
        wires[0].cancel("too late")
        assert wires[0].closed.is_set()


def test_cancel_ends_work_of_the_far_part_that_nobody_waits_for():
    with three() as wires:
        work = wires[0].far.exchange(REDUCE, {}, blank(2))
        wires[0].cancel("replica 9 is silent")
        until = time.monotonic() + SOON
        while not work.done():
            assert time.monotonic() < until


def test_near_ones_are_served_while_a_far_one_is_waited_for():
    """The far one waits for a near one, which waits for what it has lent to be released."""
    with three() as wires:
        lent = wires[1].borrow(REDUCE, {0: [wires[1].memory(5000, torch.empty(0))]}, {})
        loan = wires[0].borrow(REDUCE, {}, {1: [torch.empty(5000)]})
        loan.wait()

        def near():
            lent.returned()
            wires[1].exchange(GATHER, {2: [torch.ones(8)]}, {}).wait()

        def far():
            wires[2].exchange(GATHER, {}, blank(1)).wait()
            wires[2].exchange(GATHER, {0: [torch.full((8,), 3.0)]}, {}).wait()

        threads = [threading.Thread(target=each) for each in (near, far)]
        for thread in threads:
            thread.start()
        loan.release()
        target = blank(2)
        wires[0].exchange(GATHER, {}, target).wait()
        for thread in threads:
            thread.join(SOON)
        assert target[2][0].tolist() == [3.0] * 8


@pytest.mark.parametrize("kind", ["exchange", "borrow"])
def test_work_is_done_once_both_parts_are(kind):
    with three() as wires:
        work = from_both(wires[0], kind)
        assert not work.done()
        for rank in (1, 2):
            assert not work.done()
            wires[rank].exchange(REDUCE, {0: [torch.zeros(8)]}, {})
        until = time.monotonic() + SOON
        while not work.done():
            assert time.monotonic() < until
        work.wait()


def test_work_that_has_failed_is_done():
    for lost in (1, 2):
        with three() as wires:
            work = from_both(wires[0], "exchange")
            wires[lost].close()
            until = time.monotonic() + SOON
            while not work.done():
                assert time.monotonic() < until
            with pytest.raises(PeerLost):
                work.wait()


def test_bytes_are_counted_by_where_they_go():
    with three() as wires:
        wires[0].exchange(REDUCE, {1: [torch.zeros(3)], 2: [torch.zeros(5)]}, {})
        assert (wires[0].near.bytes_sent, wires[0].far.bytes_sent, wires[0].bytes_sent) == (12, 20, 32)


def test_a_shortage_of_memory_is_told():
    with three() as wires:
        assert wires[0].shortage == ""
        wires[0].near.shortage = "why"
        assert wires[0].shortage == "why"
