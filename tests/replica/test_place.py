"""Which transport a generation gets, and what is left where it comes to nothing."""

import os
import socket
from types import SimpleNamespace

import pytest

from samestep.errors import PeerLost
from samestep.replica import place
from samestep.replica.place import Formation, open_wire


def formation(connections=None, addresses=None, memory=None, hosts=(0, 0, 1)):
    made = {"generation": 2, "members": [5, 6, 7], "before": [], "held": 0, "step": 0, "work": None, "token": "00"}
    near, far = connections or {}, addresses or {}
    return Formation(**made, hosts=list(hosts), connections=near, addresses=far, memory=memory)


def control(transport):
    return SimpleNamespace(place=SimpleNamespace(transport=transport, replica=5))


NEAR, FAR = {1: 10}, {2: ("127.0.0.1", 1)}


@pytest.mark.parametrize(
    ("transport", "told", "kind"),
    [
        ("shared memory", formation({1: 10, 2: 11}, {}, 12), "_shared_memory"),
        ("shared memory", formation({}, {}, 12), "_shared_memory"),
        ("shared memory", formation(NEAR, FAR, 12), "_joined"),
        ("shared memory", formation({}, FAR), "_sockets"),
        ("sockets", formation(NEAR, FAR), "_sockets"),
        ("torch", formation({1: 10, 2: 11}), "_torch"),
    ],
)
def test_the_transport_follows_from_who_is_where(monkeypatch, transport, told, kind):
    for name in ("_shared_memory", "_joined", "_sockets", "_torch"):
        monkeypatch.setattr(place, name, lambda control, formation, name=name: name)
    assert open_wire(control(transport), told) == kind


def test_a_meeting_that_ends_too_early_leaves_nothing_open(monkeypatch):
    def over(*terms):
        raise PeerLost("generation 2 is over")

    monkeypatch.setattr(place, "_far", over)
    (ours, theirs), file = socket.socketpair(), os.memfd_create("test")
    with theirs, pytest.raises(PeerLost):
        open_wire(control("shared memory"), formation({1: ours.detach()}, FAR, file))
        pytest.fail("nobody was to be met")
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file)
