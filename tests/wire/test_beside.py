"""A device's own transport beside another one: who is told what, and what becomes of a stuck communicator."""

import threading
import time

import pytest
import torch
from polled import Polled

from samestep.errors import ClusterError, PeerLost
from samestep.wire import loopback
from samestep.wire.beside import OVER, Beside
from samestep.wire.collective import Operation, Tag, everybody_ready
from samestep.wire.torch_backend import meeting

CPU = torch.device("cpu")
TAG = Tag(2, Operation.REDUCE, 1)


class Stuck:
    """A group whose exchanges end only when it is aborted, and then look as if they were done, as NCCL's do."""

    def __init__(self, connects=True):
        self.aborted, self.connects = threading.Event(), connects
        self.aborts = 0

    def connect(self):
        if not self.connects:
            self.aborted.wait(10)

    def start(self, sends, receives):
        return self

    def done(self):
        return self.aborted.is_set()

    def wait(self):
        assert self.done()

    def abort(self):
        self.aborts += 1
        self.aborted.set()


def never():
    return False


def test_a_stuck_exchange_is_aborted_when_the_generation_is_over_and_its_result_is_not_believed():
    gone = threading.Event()
    group, (inner, peer) = Stuck(), loopback.connect(2)
    wire = Beside(inner, group, CPU, gone.is_set)
    work = wire.exchange(TAG, {}, {1: [torch.zeros(4)]})
    peer.exchange(TAG, {0: [torch.tensor([1, 4])]}, {})
    assert not work.done()
    threading.Timer(0.05, gone.set).start()
    with pytest.raises(PeerLost, match=OVER):
        work.wait()
    assert group.aborts == 1
    with pytest.raises(PeerLost):
        wire.exchange(TAG, {1: [torch.zeros(4)]}, {})


def test_cancel_from_another_thread_aborts_at_once():
    group, (inner, _) = Stuck(), loopback.connect(2)
    wire = Beside(inner, group, CPU, never)
    work = wire.exchange(TAG, {}, {1: [torch.zeros(4)]})
    threading.Timer(0.05, wire.cancel, ["replica 1 is silent"]).start()
    began = time.monotonic()
    with pytest.raises(PeerLost, match="replica 1 is silent"):
        work.wait()
    assert time.monotonic() - began < 5 and group.aborts == 1


def test_a_death_while_all_connect_is_seen():
    gone, group = threading.Event(), Stuck(connects=False)
    threading.Timer(0.05, gone.set).start()
    with pytest.raises(PeerLost, match=OVER):
        Beside(loopback.connect(2)[0], group, CPU, gone.is_set)
    assert group.aborts == 1


def test_what_keeps_all_from_connecting_is_told_with_the_way_out():
    group = Stuck()
    group.connect = lambda: (_ for _ in ()).throw(RuntimeError("NCCL error: no route\nmore"))
    with pytest.raises(ClusterError, match=r"2 replicas .* NCCL \(NCCL error: no route\); set run.transport=sockets"):
        Beside(loopback.connect(2)[0], group, CPU, never)


def test_a_message_of_another_size_is_told_before_anything_is_waited_for():
    group, (inner, peer) = Stuck(), loopback.connect(2)
    wire = Beside(inner, group, CPU, never)
    peer.exchange(TAG, {0: [torch.tensor([1, 5])]}, {})
    with pytest.raises(ClusterError, match=r"\[\[1, 5\]\], but \[\[1, 4\]\] were due"):
        wire.exchange(TAG, {}, {1: [torch.zeros(4)]}).wait()
    assert group.aborts == 1


def test_tensors_of_the_device_and_others_arrive_in_one_exchange_and_are_counted_once():
    """torch's gloo takes the part of the device's own way: `meta` stands for the host here, and is not moved."""

    def replica(inner):
        group = Polled(inner.rank, 2, meeting(inner, "127.0.0.1"))
        wire = Beside(inner, group, CPU, never)
        peer, target = 1 - wire.rank, torch.zeros(100)
        mine = torch.full((100,), 1.0 + wire.rank)
        for step in range(3):
            wire.exchange(Tag(step, Operation.REDUCE), {peer: [mine]}, {peer: [target]}).wait()
        everybody_ready(inner, TAG)
        return target.unique().tolist(), wire.bytes_sent - 1  # that of `everybody_ready`

    assert loopback.run(2, replica) == [([2.0], 1200), ([1.0], 1200)]


def test_only_the_host_s_own_address_is_listened_at():
    def replica(wire):
        store = meeting(wire, "127.0.0.2")
        if wire.rank == 0:
            store.set("word", "said")
            everybody_ready(wire, TAG)
            return store.host
        found = store.get("word")
        everybody_ready(wire, TAG)
        return found

    assert loopback.run(2, replica) == ["127.0.0.2", b"said"]
