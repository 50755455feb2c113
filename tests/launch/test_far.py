"""Replicas with nurses, as on other nodes: processes of their own here, and no scheduler."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import psutil
import pytest

from samestep.errors import ClusterError
from samestep.launch import far, handshake
from samestep.launch.company import Company
from samestep.launch.engine import Program
from samestep.launch.far import Nodes
from samestep.launch.nurse import Ward
from samestep.recover.protocol import Terms
from samestep.replica import board
from samestep.replica.board import Board

pytestmark = pytest.mark.usefixtures("nothing_is_left")

HERE = "127.0.0.1"
PRELUDE = """
import os, signal, sys, time
from samestep.errors import DataError
from samestep.replica.board import Phase, Wish
from samestep.replica.place import connect, open_wire
control = connect(os.environ)
control.joined()
formation = control.formation()
me = control.place.replica
rank = formation.members.index(me)
def wait(held):
    global formation
    control.send({'event': 'waiting', 'generation': formation.generation, 'held': held, 'step': 5, 'ready': False})
    formation = control.formation()
    control.send({'event': 'x', 'replica': me, 'members': formation.members})
def gone(generation):
    while not control.is_over(generation):
        time.sleep(0.01)
"""
NURSE = """
import json, sys, time
from samestep.launch.nurse import Ward, call_again
call_again(Ward(**json.loads(sys.argv[1])), *sys.argv[2:], time.sleep)
"""


class Hospital:
    """A field of nodes on this machine, and the company of a run on it."""

    def __init__(self, body, replicas, resources, **terms):
        self.resources, self.body = resources, body
        self.program = Program([sys.executable, "-c", PRELUDE + body], work={"word": "hello"}, restore=dict)
        self.terms = Terms(replicas, 8, 2, **terms)
        page = board.create(8)
        resources.callback(os.close, page)
        lines = resources.enter_context(contextlib.closing(Board(page, 8)))
        self.token, self.nurses, self.events = secrets.token_bytes(32), [], []
        self.nodes = resources.enter_context(contextlib.closing(Nodes(HERE, self.token, lines, 8, self.program.work)))
        resources.callback(self.dismiss)

    def nurse(self, name, command=None, folder="/"):
        usual = (sys.executable, "-c", PRELUDE + self.body)
        ward = Ward(
            self.nodes.engine, self.token.hex(), command or usual, sys.executable, "sockets", 1, None, str(folder)
        )
        process = subprocess.Popen([sys.executable, "-c", NURSE, json.dumps(asdict(ward)), name, HERE])
        self.nurses.append(process)
        return process

    def ready(self, count):
        until = time.monotonic() + 60
        while len(self.nodes.idle) < count and time.monotonic() < until:
            list(self.nodes.hear(0.1))
        assert len(self.nodes.idle) == count

    def run(self, hear=lambda event: None):
        def heard(event):
            self.events.append(event)
            hear(event)

        self.company = Company(self.nodes, self.nodes.board, self.program, self.terms, heard)
        self.resources.callback(self.company.close)
        self.company.run()
        return self.events

    def dismiss(self):
        self.nodes.close()
        for process in self.nurses:
            process.wait(20)


@pytest.fixture
def hospital():
    with contextlib.ExitStack() as resources:

        def made(body, replicas=2, nurses=None, **terms):
            found = Hospital(body, replicas, resources, **terms)
            for number in range(replicas if nurses is None else nurses):
                found.nurse(f"n{number}")
            found.ready(len(found.nurses))
            return found

        yield made


def found(events, name="x"):
    return [event for event in events if event["event"] == name]


def test_every_replica_gets_its_place_and_events_arrive_in_order_up_to_the_last(hospital):
    body = "for i in range(2000): control.send({'event': 'x', 'i': i, 'word': control.place.work['word']})"
    events = found(hospital(body).run())
    for rank in (0, 1):
        assert [e["i"] for e in events if e["rank"] == rank] == list(range(2000))
    assert {e["word"] for e in events} == {"hello"}


def test_replicas_meet_over_tcp(hospital):
    body = """
wire = open_wire(control, formation)
control.send({'event': 'x', 'kind': type(wire).__name__, 'hosts': list(wire.hosts)})
wire.close()
"""
    assert [(e["kind"], e["hosts"]) for e in found(hospital(body).run())] == [("Sockets", [0, 1])] * 2


DIES = """
generation = formation.generation
if me == 1:
    control.phase(12, Phase.BACKWARD)
    {}
if me == 0:
    gone(generation)
    wait(generation)
"""


def test_one_that_is_killed_is_told_with_step_and_phase_and_the_other_goes_on(hospital):
    events = hospital(DIES.format("os.kill(os.getpid(), signal.SIGKILL)")).run()
    (left,) = found(events, "left")
    assert (left["reason"], left["step"], left["phase"]) == ("replica 1 was killed by SIGKILL", 12, "backward")
    assert [e["members"] for e in found(events)] == [[0]]


def test_a_nurse_that_is_killed_takes_its_replica_along_and_that_is_known_at_once(hospital):
    here = hospital(DIES.format("control.send({'event': 'pid', 'is': os.getpid()}); time.sleep(60)"))
    seen = {}

    def hear(event):
        if event["event"] == "pid":
            seen["process"], seen["at"] = psutil.Process(event["is"]), time.monotonic()
            seen["process"].parent().kill()
        if event["event"] == "left":
            seen["left"] = time.monotonic()

    events = here.run(hear)
    assert [e["reason"] for e in found(events, "left")] == ["replica 1 is lost with its node"]
    assert seen["left"] - seen["at"] < 2
    assert [e["members"] for e in found(events)] == [[0]]
    assert psutil.wait_procs([seen["process"]], timeout=2)[1] == []


def test_one_that_is_lost_is_replaced_where_its_nurse_has_room_again(hospital):
    body = """
generation = formation.generation
if me == 1:
    os._exit(9)
if me == 0:
    gone(generation)
    wait(generation)
    while len(formation.members) == 1 and control.wish(formation.generation) is not Wish.GATHER:
        time.sleep(0.01)
    wait(formation.generation)
"""
    events = hospital(body, replace=True, backoff=0.0).run()
    assert [0, 2] in [e["members"] for e in found(events)]


def test_a_nurse_that_comes_later_is_room_for_one_that_was_short(hospital):
    body = """
if me == 0:
    control.send({'event': 'begun'})
    while control.wish(formation.generation) is not Wish.GATHER:
        time.sleep(0.01)
    wait(formation.generation)
"""
    here = hospital(body, replicas=1, short=1)
    events = here.run(lambda event: event["event"] == "begun" and here.nurse("late"))
    assert [e["members"] for e in found(events)] == [[0, 1]]


def test_a_wish_to_stop_is_brought_to_all(hospital):
    body = """
control.send({'event': 'begun'})
while control.wish(formation.generation) is not Wish.STOP:
    time.sleep(0.01)
"""
    here = hospital(body)
    here.run(lambda event: event["event"] == "begun" and here.company.stop())


def test_one_that_is_stopped_is_named_with_its_line_of_python_and_ended(hospital):
    body = """
generation = formation.generation
control.phase(7, Phase.FORWARD)
if me == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
control.phase(7, Phase.EXCHANGE)
gone(generation)
wait(generation)
"""
    events = hospital(body).run()
    (silent,) = found(events, "silent")
    assert (silent["replica"], silent["kind"], silent["step"], silent["phase"]) == (1, "stopped", 7, "forward")
    assert silent["ended"] and "<module> at <string>" in silent["reason"]
    assert [e["members"] for e in found(events)] == [[0]]


def test_one_that_cannot_be_started_is_told_with_the_reason(hospital):
    here = hospital("", replicas=1, nurses=0)
    here.nurse("n0", ["/no/such/program"])
    here.ready(1)
    with pytest.raises(ClusterError, match=r"replica \d could not be started .*/no/such/program"):
        here.run()


def test_replicas_are_where_the_engine_is_whose_paths_they_follow(hospital, tmp_path):
    here = hospital("control.send({'event': 'x', 'in': os.getcwd()})", replicas=1, nurses=0)
    here.nurse("n0", folder=tmp_path)
    here.ready(1)
    assert [e["in"] for e in found(here.run())] == [str(tmp_path)]


def test_a_node_without_that_folder_is_told(hospital):
    here = hospital("", replicas=1, nurses=0)
    here.nurse("n0", folder="/no/such/folder")
    here.ready(1)
    with pytest.raises(ClusterError, match="node n0 cannot go to /no/such/folder, where the run was started"):
        here.run()


def test_looks_that_do_not_come_blame_nobody(hospital):
    """As on a network that is slow: a nurse that is stopped says nothing of a replica that sleeps."""
    body = """
if me == 0:
    control.send({'event': 'begun'})
control.phase(3, Phase.FORWARD if me else Phase.EXCHANGE)
until = time.monotonic() + 9
while time.monotonic() < until:
    sum(range(100_000)) if me else time.sleep(0.1)
"""
    here = hospital(body)

    def hear(event):
        if event["event"] == "begun":
            victim = next(c for c in here.company._children.values() if c.replica == 1).place.host
            nurse = here.nurses[int(victim[1:])]
            nurse.send_signal(signal.SIGSTOP)
            threading.Timer(6.5, nurse.send_signal, [signal.SIGCONT]).start()

    assert [event for event in found(here.run(hear), "silent") if event["ended"]] == []


def test_where_no_nurse_is_free_it_is_said(hospital):
    with pytest.raises(ClusterError, match="replica 1 was to be started, but no node has room for it"):
        hospital("time.sleep(60)", replicas=2, nurses=1).run()


def test_strangers_are_hung_up_on_and_the_silent_after_a_while(hospital, monkeypatch):
    monkeypatch.setattr(handshake, "PATIENCE", 0.3)
    here = hospital("", replicas=1, nurses=0)
    with socket.create_connection(here.nodes.engine) as rude, socket.create_connection(here.nodes.engine) as silent:
        rude.sendall(b"x" * handshake.CALL)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            list(here.nodes.hear(0.05))
        for line in (rude, silent):
            assert len(line.recv(1 << 10)) == handshake.CHALLENGE and line.recv(1) == b""
    assert here.nodes.idle == []


def test_a_line_on_which_no_kernel_answers_is_given_up(hospital, monkeypatch):
    """As where a node is cut off: only the kernel's silence is pretended."""
    here = hospital(DIES.format("control.send({'event': 'pid'}); time.sleep(60)"))

    def hear(event):
        if event["event"] == "pid":
            (cut,) = [child.nurse.line for child in here.company._children.values() if child.replica == 1]
            monkeypatch.setattr(far.tcp, "silence", lambda line: 9.0 if line is cut else 0.0)

    events = here.run(hear)
    assert [e["reason"] for e in found(events, "left")] == ["replica 1 is lost with its node"]


def test_a_replica_that_has_lived_for_long_is_no_sign_of_a_bad_node():
    ends, rests = 0, []
    for lived in (1.0, 1.0, far.CALM - 1, far.CALM, 1.0):
        ends = far.ends_in_a_row(ends, lived)
        rests.append(ends)
    assert rests == [1, 2, 3, 1, 2]
