import threading
import time
from types import SimpleNamespace

import pytest

from samestep.errors import PeerLost
from samestep.replica import links
from samestep.replica.links import UNREACHABLE, Links
from samestep.wire import tcp


class Control:
    """What a replica says to the engine, and whether the engine has ended the generation."""

    def __init__(self):
        self.sent, self.over = [], False

    def send(self, event):
        self.sent.append((event["event"], event["peer"], event["generation"]))

    def is_over(self, generation):
        assert generation == 4
        return self.over


@pytest.fixture
def watched(monkeypatch):
    """Links of generation 4 to replicas 5 and 7, whose silences can be set by the connections, which are names here."""
    silences = {"five": 0.0, "seven": 0.0}
    monkeypatch.setattr(tcp, "silence", silences.__getitem__)
    made = Links(control := Control(), 4, [3, 5, 7])
    return made, control, silences


def test_a_peer_that_owes_an_answer_is_told_of_once_and_again_when_it_answers(watched):
    made, control, silences = watched
    made.reached(1, "five")
    made.reached(2, "seven")
    for silence in (0.0, 1.0, UNREACHABLE, UNREACHABLE + 1, 0.0, 0.0):
        silences["seven"] = silence
        made.look()
    assert control.sent == [("unreachable", 7, 4), ("reachable", 7, 4)]


def test_one_that_is_called_in_vain_is_unreachable_after_the_same_time(watched, monkeypatch):
    made, control, _ = watched
    now = 100.0
    monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: now))
    made.calls(1, answered=False)
    for _ in range(6):
        now += 0.6
        made.calls(1, answered=False)
        made.look()
    assert control.sent == [("unreachable", 5, 4)]
    made.reached(1, "five")
    made.look()
    assert control.sent[1:] == [("reachable", 5, 4)]


def test_one_whose_host_refuses_is_reached(watched, monkeypatch):
    """Nobody listens there: the replica has ended, which the engine knows better."""
    made, control, _ = watched
    now = 100.0
    monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: now))
    for _ in range(10):
        now += 1
        made.calls(1, answered=True)
        made.look()
    assert control.sent == []


def test_a_generation_that_the_engine_has_ended_ends_the_meeting(watched):
    made, control, _ = watched
    made.look()
    control.over = True
    with pytest.raises(PeerLost, match="generation 4 is over"):
        made.look()


def test_a_generation_that_the_engine_has_ended_cancels_the_wire(watched, monkeypatch):
    made, control, _ = watched
    monkeypatch.setattr(links, "LOOK", 0.01)
    cancelled = threading.Event()
    wire = SimpleNamespace(closed=threading.Event(), cancel=lambda reason: cancelled.set())
    made.follow(wire)
    time.sleep(0.1)
    assert not cancelled.is_set()
    control.over = True
    assert cancelled.wait(5)


def test_nobody_looks_on_once_the_wire_is_closed(watched, monkeypatch):
    made, *_ = watched
    monkeypatch.setattr(links, "LOOK", 30.0)
    wire = SimpleNamespace(closed=threading.Event(), cancel=None)
    made.follow(wire)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "samestep-links"]
    wire.closed.set()
    thread.join(5)
    assert not thread.is_alive()
