"""How tensors of a device travel follows from what all replicas compute on."""

import torch

from samestep.replica.carrier import Seat, apart, carried, shared, told
from samestep.wire import loopback


def test_nccl_joins_replicas_with_a_device_each_and_no_others():
    assert apart([Seat(1, True), Seat(2, True), Seat(3, True)])
    assert not apart([Seat(1, True), Seat(1, True)])
    assert not apart([Seat(1, True), Seat(2, True), Seat(1, True)])
    assert not apart([Seat(1, True)])


def test_nccl_is_taken_only_where_all_have_it():
    assert not apart([Seat(1, True), Seat(2, False)])


def test_sharing_is_said_with_how_many_there_are_of_each():
    assert shared([Seat(1, True), Seat(2, True)]) is None
    assert shared([Seat(1, True)]) is None
    assert str(shared([Seat(7, True)] * 3)).startswith("3 replicas share 1 GPU, up to 3 on one;")
    assert str(shared([Seat(7, True), Seat(8, True), Seat(7, True)])).startswith("3 replicas share 2 GPUs, up to 2 on")


def test_all_learn_what_all_compute_on():
    seats = [Seat(-(1 << 63), True), Seat((1 << 63) - 1, False), Seat(0, True)]
    assert loopback.run(3, lambda wire: told(wire, seats[wire.rank])) == [seats] * 3


def test_on_processors_the_transport_stays_as_it_is():
    (wire,) = loopback.connect(1)
    assert carried(wire, torch.device("cpu"), True, "", lambda: False) == (wire, [])
