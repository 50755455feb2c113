"""Replicas that meet over TCP, with strangers at the door."""

import contextlib
import os
import socket
import threading
import time

import pytest

from samestep.errors import PeerLost
from samestep.wire import meeting
from samestep.wire.meeting import HELLO, Door, answer, hello, meet

TOKEN, OTHER = bytes(range(32)), bytes(32)


class Watcher:
    """Hears who is reached, and ends a meeting after `seconds`."""

    def __init__(self, seconds=20.0):
        self.until, self.heard = time.monotonic() + seconds, []

    def calls(self, rank, answered):
        self.heard.append((rank, "answered" if answered else "called"))

    def reached(self, rank, connection):
        self.heard.append((rank, "reached"))

    def look(self):
        if time.monotonic() > self.until:
            raise PeerLost("it takes too long")


@pytest.fixture
def doors():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Door("127.0.0.1"))) for _ in range(3)]


def at(door):
    return "127.0.0.1", door.port


def attend(doors, rank, results, watcher, token=TOKEN, generation=3):
    addresses = {r: at(door) for r, door in enumerate(doors) if r != rank}
    try:
        results[rank] = meet(doors[rank], rank, addresses, generation, token, watcher)
    except PeerLost as error:
        results[rank] = error


def gather(doors, ranks=(0, 1, 2), tokens=None, seconds=20.0, generation=3):
    """What each rank has in the end, and what it has heard."""
    results, watchers = {}, {rank: Watcher(seconds) for rank in ranks}
    arguments = [(doors, r, results, watchers[r], (tokens or {}).get(r, TOKEN), generation) for r in ranks]
    threads = [threading.Thread(target=attend, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results, watchers


def talk(results):
    """Each pair of connections is one, whose ends say the right thing."""
    for rank, made in results.items():
        for peer, connection in made.items():
            connection.setblocking(True)
            connection.sendall(bytes([10 * rank + peer]))
    for rank, made in results.items():
        for peer, connection in made.items():
            assert connection.recv(1) == bytes([10 * peer + rank])
    for made in results.values():
        for connection in made.values():
            connection.close()


def test_each_two_get_one_connection(doors):
    results, watchers = gather(doors)
    assert {rank: set(made) for rank, made in results.items()} == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}}
    assert {rank for rank, what in watchers[1].heard if what == "reached"} == {0, 2}
    talk(results)


def garbage():
    return os.urandom(4000)


STRANGERS = {
    "garbage": garbage(),
    "too little": hello(TOKEN, 3, 0, 2)[: HELLO - 1],
    "nothing": b"",
    "another secret": hello(OTHER, 3, 0, 2),
    "another generation": hello(TOKEN, 2, 0, 2),
    "for another": hello(TOKEN, 3, 0, 1),
    "from nobody": hello(TOKEN, 3, 7, 2),
    "a secret in the clear": hello(TOKEN, 3, 0, 2)[: HELLO - 32] + TOKEN,
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS.keys())
def test_strangers_change_nothing_and_keep_nobody_waiting(doors, said):
    with contextlib.ExitStack() as strangers:
        for _ in range(5):
            stranger = strangers.enter_context(socket.create_connection(at(doors[2])))
            stranger.sendall(said)
        began = time.monotonic()
        results, _ = gather(doors)
        assert time.monotonic() - began < 3
        talk(results)


def test_a_stranger_that_says_something_wrong_is_hung_up_on_without_a_word(doors):
    with socket.create_connection(at(doors[2]), timeout=10) as stranger:
        stranger.sendall(STRANGERS["another secret"])
        talk(gather(doors)[0])
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""


def test_one_that_says_nothing_is_hung_up_on_after_a_while(doors, monkeypatch):
    monkeypatch.setattr(meeting, "PATIENCE", 0.3)
    meets = threading.Thread(target=attend, args=(doors, 2, {}, Watcher(4)))
    with socket.create_connection(at(doors[2]), timeout=10) as stranger:
        meets.start()
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
        assert time.monotonic() - began < 3 and meets.is_alive()
    meets.join()


def test_more_strangers_than_are_listened_to_leave_room_for_a_replica(doors):
    with contextlib.ExitStack() as strangers:
        for _ in range(meeting.GUESTS + 30):
            strangers.enter_context(socket.create_connection(at(doors[2])))
        began = time.monotonic()
        results, _ = gather(doors)
        assert time.monotonic() - began < 5
        talk(results)


def test_a_hello_that_is_said_again_is_a_strangers(doors):
    said = hello(TOKEN, 3, 0, 2)
    meets = threading.Thread(target=attend, args=(doors, 2, {}, Watcher(2)))
    meets.start()
    with socket.create_connection(at(doors[2]), timeout=10) as first:
        first.sendall(said)
        assert first.recv(32) == answer(TOKEN, said)
        with socket.create_connection(at(doors[2]), timeout=10) as second:
            second.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                assert second.recv(32) == b""
    meets.join()


@pytest.mark.parametrize("says", [bytes(32), answer(OTHER, hello(TOKEN, 3, 0, 1)), hello(TOKEN, 3, 0, 1)[-32:]])
def test_a_stranger_that_answers_is_not_taken_for_a_replica(doors, says):
    results = {}
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(5)
        addresses = {1: stranger.getsockname()}
        caller = threading.Thread(target=call, args=(doors[0], addresses, results))
        caller.start()
        for _ in range(2):  # it is called once more, for it may be a replica next time
            called, _ = stranger.accept()
            with called:
                assert called.recv(1000) == hello(TOKEN, 3, 0, 1)
                called.sendall(says)
        caller.join()
    assert isinstance(results[0], PeerLost)


def call(door, addresses, results):
    try:
        results[0] = meet(door, 0, addresses, 3, TOKEN, Watcher(1.5))
    except PeerLost as error:
        results[0] = error


def test_one_with_another_secret_is_not_met(doors):
    results, watchers = gather(doors, ranks=[0, 1], tokens={1: OTHER}, seconds=1.5)
    assert all(isinstance(result, PeerLost) for result in results.values())
    assert (1, "answered") in watchers[0].heard


def test_one_that_refuses_is_there_and_is_called_again_and_again(doors):
    with contextlib.closing(Door("127.0.0.1")) as closed:
        nobody = at(closed)
    watcher = Watcher(1.5)
    with pytest.raises(PeerLost, match="too long"):
        meet(doors[0], 0, {1: nobody}, 3, TOKEN, watcher)
    assert watcher.heard[0] == (1, "called") and set(watcher.heard[1:]) == {(1, "answered")}
    assert len(watcher.heard) > 3


def test_one_that_comes_late_is_waited_for_on_the_same_connection(doors):
    results, watcher = {}, Watcher()
    early = threading.Thread(target=attend, args=(doors[:2], 0, results, watcher))
    early.start()
    time.sleep(meeting.ATTEMPT + 0.5)
    attend(doors[:2], 1, results, Watcher())
    early.join(10)
    assert watcher.heard == [(1, "called"), (1, "reached"), (1, "reached")]
    talk(results)


def test_after_a_meeting_that_was_ended_the_next_generation_meets_at_the_same_doors(doors):
    """Where the hellos of the one before still wait to be read."""
    results, _ = gather(doors, ranks=[0, 1], seconds=0.5)
    assert all(isinstance(result, PeerLost) for result in results.values())
    talk(gather(doors, generation=4)[0])


def test_a_door_is_open_at_its_address_only(doors):
    assert doors[0].listener.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", doors[0].port), timeout=5)
