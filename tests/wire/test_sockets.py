"""What sockets promise beyond the laws of every transport."""

import contextlib
import socket

import pytest
import torch

from samestep.errors import ClusterError
from samestep.wire.collective import Operation, Tag
from samestep.wire.sockets import Sockets


def test_a_message_of_another_generation_is_refused_and_lands_nowhere():
    ours, theirs = socket.socketpair()
    tag, target = Tag(5, Operation.READY), torch.full((8,), 7.0)
    with (
        contextlib.closing(Sockets(0, 2, {1: ours}, generation=3)) as new,
        contextlib.closing(Sockets(1, 2, {0: theirs}, generation=2)) as old,
    ):
        old.exchange(tag, {0: [torch.zeros(8)]}, {}).wait()
        with pytest.raises(ClusterError, match=r"generation 2.*generation 3"):
            new.exchange(tag, {}, {1: [target]}).wait()
    assert target.tolist() == [7.0] * 8


def test_errors_name_a_replica_by_its_number_and_not_by_its_rank():
    ours, theirs = socket.socketpair()
    with (
        contextlib.closing(Sockets(0, 2, {1: ours}, members=[3, 7])) as wire,
        contextlib.closing(Sockets(1, 2, {0: theirs}, members=[3, 7])) as other,
    ):
        other.exchange(Tag(4, Operation.READY), {0: [torch.zeros(8)]}, {}).wait()
        with pytest.raises(ClusterError, match="replica 7 sent"):
            wire.exchange(Tag(5, Operation.READY), {}, {1: [torch.zeros(8)]}).wait()


def test_it_may_be_cancelled_while_it_is_being_closed():
    ours, theirs = socket.socketpair()
    with contextlib.closing(theirs):
        wire = Sockets(0, 2, {1: ours})
        wire.close()
        wire.cancel("replica 1 is gone")
