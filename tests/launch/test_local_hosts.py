"""Replicas on several hosts: where they start, whom they call, and what becomes of those that nobody reaches."""

import sys
import time

import pytest

from samestep.errors import ClusterError
from samestep.launch.engine import Program
from samestep.launch.hosts import Host
from samestep.launch.local import Local
from samestep.recover.protocol import Terms
from tests.launch.test_local import FAIL, PRELUDE, SURVIVE

pytestmark = pytest.mark.usefixtures("nothing_is_left")

HOSTS = (Host("a", ("env", "WHERE=a"), "127.0.0.1", 2), Host("b", ("env", "WHERE=b"), "127.0.0.2", 1))
FAR = PRELUDE.replace('control.send({"event": "joined"})', "control.joined()")


def across(body, replicas=3, hosts=HOSTS, **terms):
    events = []
    program = Program([sys.executable, "-c", FAR + body], hosts=hosts, restore=dict)
    Local().run(program, Terms(replicas, 8, 2, **terms), events.append)
    return events


def test_replicas_start_on_their_hosts_and_call_those_of_others_only():
    body = """
control.send({'event': 'x', 'where': os.environ['WHERE'], 'near': list(formation.connections), 'token': formation.token,
              'far': {rank: at for rank, (at, port) in formation.addresses.items()}})
"""
    found = sorted((e for e in across(body) if e["event"] == "x"), key=lambda e: e["rank"])
    assert [e["where"] for e in found] == ["a", "a", "b"]
    assert [e["near"] for e in found] == [[1], [0], []]
    assert [e["far"] for e in found] == [{"2": "127.0.0.2"}, {"2": "127.0.0.2"}, {"0": "127.0.0.1", "1": "127.0.0.1"}]
    assert len({e["token"] for e in found}) == 1 and len(found[0]["token"]) == 64


def test_replicas_of_one_host_share_a_file_and_know_who_is_where():
    body = """
file = None if formation.memory is None else os.fstat(formation.memory).st_ino
control.send({'event': 'x', 'hosts': formation.hosts, 'file': file})
"""
    places = (HOSTS[0], Host("b", ("env", "WHERE=b"), "127.0.0.2", 2), Host("c", ("env", "WHERE=c"), "127.0.0.3", 1))
    found = sorted((e for e in across(body, 5, places) if e["event"] == "x"), key=lambda e: e["rank"])
    assert [e["hosts"] for e in found] == [[0, 0, 1, 1, 2]] * 5
    files = [e["file"] for e in found]
    assert files[0] == files[1] != files[2] == files[3] and None not in files[:4] and files[4] is None


def test_a_host_that_does_not_have_its_address_is_named():
    body = PRELUDE.split("control.send")[0] + FAIL.format("control.joined()")
    program = Program([sys.executable, "-c", body], hosts=(Host("a", (), "192.0.2.7", 1),))
    with pytest.raises(ClusterError, match=r"called at 192.0.2.7, run.hosts.a.address, but cannot listen there"):
        Local().run(program, Terms(1, 8), lambda event: None)


CUT = (
    SURVIVE
    + """
first = formation.token
if len(formation.members) == 3:
    if rank != 1:
        control.send({'event': 'unreachable', 'peer': 1, 'seconds': 4.0, 'generation': generation})
    while not control.is_over(generation):
        time.sleep(0.01)
    wait(generation)
control.send({'event': 'x', 'members': formation.members, 'fresh': first != formation.token})
"""
)
ONE_EACH = tuple(Host(name, (), f"127.0.0.{n}", 1) for n, name in enumerate("abcd", 1))


def test_a_host_that_others_do_not_reach_is_given_up_and_the_others_are_woken():
    began = time.monotonic()
    events = across(CUT, hosts=ONE_EACH[:3])
    assert time.monotonic() - began < 10
    assert [(e["members"], e["fresh"]) for e in events if e["event"] == "x"] == [([0, 2], True)] * 2
    (left,) = [e for e in events if e["event"] == "left"]
    assert (left["replica"], left["reason"]) == (
        1,
        "host b (replica 1) is out of reach of replicas 0, 2 for 8 s and is given up",
    )
    assert [e["host"] for e in events if e["event"] == "unreachable"] == ["b"]


def test_a_replacement_starts_on_another_host_than_the_one_that_was_given_up():
    body = CUT + "control.send({'event': 'y', 'host': control.place.host})"
    events = across(body, hosts=ONE_EACH, replace=True)
    assert {e["host"] for e in events if e["event"] == "y"} <= {"a", "c", "d"}
    assert "b" not in {e["host"] for e in events if e["event"] == "y"}


def test_a_link_that_is_reported_and_mended_costs_nobody():
    body = """
control.send({'event': 'unreachable', 'peer': (rank + 1) % 2, 'seconds': 7.0, 'generation': formation.generation})
time.sleep(0.2)
control.send({'event': 'reachable', 'peer': (rank + 1) % 2, 'generation': formation.generation})
time.sleep(3)
"""
    assert not [e for e in across(body, replicas=2, hosts=ONE_EACH) if e["event"] == "left"]


@pytest.mark.slow
def test_those_that_have_waited_for_a_link_are_not_taken_for_a_deadlock_when_it_is_mended():
    body = """
control.phase(7, Phase.EXCHANGE)
time.sleep(0.5)
control.send({'event': 'unreachable', 'peer': 1 - rank, 'seconds': 0.1, 'generation': formation.generation})
time.sleep(6)
control.send({'event': 'reachable', 'peer': 1 - rank, 'generation': formation.generation})
time.sleep(3)
"""
    events = across(body, replicas=2, hosts=ONE_EACH)
    assert [e["event"] for e in events if e["event"] in ("silent", "left")] == []


@pytest.mark.slow
def test_where_no_place_is_left_the_others_go_on_with_fewer():
    body = CUT + "time.sleep(5); control.send({'event': 'y', 'members': formation.members})"
    events = across(body, hosts=ONE_EACH[:3], replace=True)
    assert [e["members"] for e in events if e["event"] == "y"] == [[0, 2]] * 2


def test_a_start_that_ends_at_once_is_tried_again_and_then_named():
    """Whether it ends before or after it is sent its place."""
    for start in (("false",), ("sh", "-c", "sleep 0.05; exit 1")):
        program = Program(["true"], hosts=(Host("a", start, "127.0.0.1", 1),), restore=dict)
        for _ in range(5):
            with pytest.raises(ClusterError, match="exited with code 1"):
                Local().run(program, Terms(1, 8), lambda event: None)
