import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from samestep.errors import ClusterError, DataError, SamestepError
from samestep.launch.child import MALLOC
from samestep.launch.engine import Program
from samestep.launch.local import Local
from samestep.launch.manners import scheduled
from samestep.recover.protocol import Terms

pytestmark = pytest.mark.usefixtures("nothing_is_left")

PRELUDE = """
import os, signal, sys, time
from samestep.errors import DataError, PeerLost
from samestep.replica.board import Phase
from samestep.replica.place import connect
control = connect(os.environ)
control.send({"event": "joined"})
formation = control.formation()
rank = formation.members.index(control.place.replica)
"""
ENGINES_OWN = ("formed", "left")
FAIL = """
try:
    {}
except BaseException as error:
    control.failed(error)
    sys.exit(3)
"""


def run(body, replicas=3, logs=None, restore=None, copies=2, replace=False):
    events = []
    command = [sys.executable, "-c", PRELUDE + body]
    program = Program(command, work={"word": "hello"}, logs=logs, restore=restore)
    Local().run(program, Terms(replicas, 8, copies, replace=replace), events.append)
    return [event for event in events if event["event"] not in ENGINES_OWN] if restore is None else events


def test_every_replica_gets_its_place_and_its_events_arrive_with_its_rank():
    events = run("control.send({'event': 'x', 'size': len(formation.members), 'word': control.place.work['word']})")
    assert sorted(e["rank"] for e in events) == [0, 1, 2]
    assert all(e["size"] == 3 and e["word"] == "hello" for e in events)


@pytest.mark.parametrize("usual", [os.SCHED_OTHER, os.SCHED_BATCH])
def test_only_the_engine_gives_way_to_replicas_and_only_while_it_runs(usual):
    policies = []
    body = "control.send({'event': 'policy', 'is': os.sched_getscheduler(0)})"
    program = Program([sys.executable, "-c", PRELUDE + body])
    with scheduled(usual):
        hear = lambda event: policies.append((os.sched_getscheduler(0), event.get("is", usual)))  # noqa: E731
        Local().run(program, Terms(2, 8), hear)
        assert os.sched_getscheduler(0) == usual
    assert set(policies) == {(os.SCHED_BATCH, usual)} and len(policies) > 2


def test_many_events_sent_just_before_the_end_all_arrive():
    events = run("for i in range(3000): control.send({'event': 'x', 'i': i, 'fill': 'y' * 100})", replicas=2)
    assert [e["i"] for e in events if e["rank"] == 1] == list(range(3000))


def test_glibc_is_told_how_to_keep_memory_unless_the_user_has(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "7")
    seen = "control.send({'event': 'x', 'has': {k: os.environ.get(k) for k in " + repr(list(MALLOC)) + "}})"
    (event,) = run(seen, replicas=1)
    assert event["has"] == MALLOC | {"MALLOC_TRIM_THRESHOLD_": "7"}


def test_replicas_are_connected_pairwise():
    body = """
import socket
for peer, descriptor in formation.connections.items():
    socket.socket(fileno=descriptor).send(bytes([rank])) if peer > rank else None
for peer, descriptor in formation.connections.items():
    if peer < rank:
        control.send({'event': 'x', 'from': os.read(descriptor, 1)[0], 'peer': peer})
"""
    assert sorted((e["rank"], e["from"]) for e in run(body) if e["from"] == e["peer"]) == [(1, 0), (2, 0), (2, 1)]


def test_all_members_of_a_generation_share_one_file_without_a_name():
    events = run(
        "at = os.fstat(formation.memory); control.send({'event': 'x', 'at': [at.st_ino, at.st_nlink, at.st_size]})"
    )
    assert len(events) == 3 and len({tuple(event["at"]) for event in events}) == 1 and events[0]["at"][1:] == [0, 0]


def test_a_killed_replica_ends_all_within_two_seconds_and_is_named_with_step_and_phase():
    body = """
if rank == 1:
    control.phase(12, Phase.BACKWARD)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"killed by SIGKILL \(replica 1, step 12, backward, pid \d+\)"):
        run(body)
    assert time.monotonic() - began < 3  # the start of three processes and at most two seconds


def test_the_first_cause_is_raised_not_the_peers_that_lost_it():
    body = FAIL.format(
        """
    if rank == 2:
        time.sleep(0.3)
        raise DataError("row 7 is gone")
    raise PeerLost("replica 2 went away")
"""
    )
    with pytest.raises(DataError, match=r"row 7 is gone \(replica 2, at the start\)") as caught:
        run(body)
    assert "DataError" in caught.value.remote_traceback


def test_a_lost_peer_without_a_cause_is_raised_after_a_while():
    with pytest.raises(SamestepError, match="replica 9 went away"):
        run(FAIL.format("raise PeerLost('replica 9 went away')"))


def test_an_exception_that_is_not_ours_is_named_by_type():
    with pytest.raises(SamestepError, match=r"ZeroDivisionError: division by zero \(replica \d, at the start\)"):
        run(FAIL.format("1 / 0"))


def test_an_exit_code_without_a_word_is_a_failure():
    with pytest.raises(ClusterError, match="exited with code 7"):
        run("sys.exit(7)")


def test_a_command_that_cannot_start_leaves_nothing():
    with pytest.raises(ClusterError, match="replica 0 could not be started"):
        Local().run(Program(["/no/such/program"]), Terms(2, 2), lambda event: None)


def test_the_output_of_replicas_goes_to_their_logs(tmp_path):
    run("print('word', rank)", replicas=2, logs=tmp_path)
    assert [(tmp_path / f"replica-{r}.log").read_text() for r in (0, 1)] == ["word 0\n", "word 1\n"]


def test_no_replica_and_no_port_is_left_when_the_engine_is_killed():
    body = "control.send({'event': 'x'}); time.sleep(60)"
    script = f"""
import sys
from samestep.launch.local import Local
from samestep.launch.manners import scheduled
from samestep.launch.engine import Program
from samestep.recover.protocol import Terms
tell = lambda e: print(e["rank"], flush=True) if e["event"] == "x" else None
Local().run(Program([sys.executable, "-c", {PRELUDE + body!r}]), Terms(2, 2), tell)
"""
    engine = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    with contextlib.closing(engine.stdout):
        assert sorted(engine.stdout.readline() for _ in range(2)) == [b"0\n", b"1\n"]
    replicas = psutil.Process(engine.pid).children(recursive=True)
    assert len(replicas) == 2
    assert all(not p.net_connections(kind="inet") for p in replicas)
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    psutil.wait_procs(replicas, timeout=2)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in replicas)


@pytest.fixture
def ctrl_c_interrupts():
    """Also where the tests are a shell's background job, which ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_in_the_engine_ends_all_replicas():
    body = "control.send({'event': 'x'}); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        Local().run(
            Program([sys.executable, "-c", PRELUDE + body]),
            Terms(2, 2),
            lambda event: event["event"] == "x" and os.kill(os.getpid(), signal.SIGINT),
        )


def test_where_one_ends_early_and_the_others_only_lost_it_the_run_ends_too():
    body = "if rank: control.send({'event': 'waiting'}); time.sleep(60)"
    with pytest.raises(ClusterError, match=r"lost its peers, and none of them has ended .* all others were stopped"):
        run(body)


SURVIVE = """
generation = formation.generation
def wait(held, ready=False):
    global formation
    control.send({'event': 'waiting', 'generation': formation.generation, 'held': held, 'step': 5, 'ready': ready})
    formation = control.formation()
"""
ONE_DIES = (
    SURVIVE
    + """
if rank == 1:
    os._exit(9)
wait(generation)
"""
)


def test_those_that_are_left_are_a_new_generation_with_connections_of_its_own():
    body = (
        ONE_DIES
        + """
(peer, descriptor), = formation.connections.items()
os.write(descriptor, bytes([control.place.replica]))
control.send({'event': 'x', 'members': formation.members, 'before': formation.before, 'held': formation.held,
              'step': formation.step, 'work': formation.work, 'read': os.read(descriptor, 1)[0]})
"""
    )
    events = run(body, restore=dict)
    found = [event for event in events if event["event"] == "x"]
    assert sorted((e["rank"], e["read"]) for e in found) == [(0, 2), (1, 0)]
    for event in found:
        assert (event["members"], event["before"], event["held"], event["step"]) == ([0, 2], [0, 1, 2], 1, 5)
        assert event["work"] is None
    assert [(e["replica"], e["reason"]) for e in events if e["event"] == "left"] == [
        (1, "replica 1 exited with code 9")
    ]


def test_where_a_part_of_the_state_is_lost_all_begin_again_with_what_can_be_restored():
    body = (
        ONE_DIES
        + """
control.send({'event': 'x', 'work': formation.work, 'before': formation.before})
"""
    )
    events = run(body, copies=1, restore=lambda: {"from": "step 3"})
    found = [(e["work"], e["before"]) for e in events if e["event"] == "x"]
    assert found == [({"from": "step 3"}, [])] * 2


def test_one_that_is_lost_is_replaced_and_the_others_are_called_together():
    body = (
        SURVIVE
        + """
from samestep.replica.board import Wish
if rank == 1 and control.place.replica == 1:
    os._exit(9)
if control.place.replica < 3:
    wait(generation)
    while len(formation.members) == 2 and control.wish(formation.generation) is not Wish.GATHER:
        time.sleep(0.01)
    wait(formation.generation)
control.send({'event': 'x', 'replica': control.place.replica, 'members': formation.members})
"""
    )
    events = run(body, replace=True, restore=dict)
    found = [(e["rank"], e["replica"]) for e in events if e["event"] == "x" and e["members"] == [0, 2, 3]]
    assert sorted(found) == [(0, 0), (1, 2), (2, 3)]


def test_one_that_is_stopped_is_named_and_ended_and_the_others_go_on():
    body = (
        SURVIVE
        + """
import select
control.phase(7, Phase.FORWARD)
if rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
control.phase(7, Phase.EXCHANGE)
peer = dict(formation.connections)[1]
gone, *_ = select.select([peer], [], [], 20)
if not gone:
    raise TimeoutError("nobody has ended it")
wait(generation)
control.send({'event': 'x', 'members': formation.members})
"""
    )
    events = run(body, restore=dict)
    assert [e["members"] for e in events if e["event"] == "x"] == [[0, 2]] * 2
    (silent,) = [e for e in events if e["event"] == "silent"]
    assert (silent["replica"], silent["kind"], silent["step"], silent["phase"]) == (1, "stopped", 7, "forward")
    assert silent["ended"] and "replica 1 is stopped" in silent["reason"]
    assert [e["replica"] for e in events if e["event"] == "left"] == [1]


def test_an_error_that_comes_again_in_the_same_step_ends_the_run_with_it():
    body = SURVIVE + FAIL.format(
        """
    control.phase(7, Phase.FORWARD)
    for _ in range(control.place.replica):
        wait(formation.generation)
    if control.place.replica < 2:
        raise OSError("disk on fire")
"""
    )
    with pytest.raises(SamestepError, match=r"OSError: disk on fire \(replica \d, step 7, forward\)"):
        run(body, restore=dict)


def test_a_refusal_of_our_own_ends_the_run_at_once():
    body = SURVIVE + FAIL.format("raise DataError('row 7 is gone')")
    with pytest.raises(DataError, match="row 7 is gone"):
        run(body, restore=dict)


def test_a_run_whose_replicas_all_die_ends_with_what_is_known():
    with pytest.raises(ClusterError, match="killed by SIGKILL"):
        run("os.kill(os.getpid(), signal.SIGKILL)", restore=dict)


def test_a_log_that_cannot_be_opened_keeps_nobody_from_starting(tmp_path, capfd):
    (tmp_path / "logs").write_text("in the way")
    run("os.write(1, f'word{rank} '.encode())", replicas=2, logs=tmp_path / "logs")  # in one call, or they mix
    assert sorted(capfd.readouterr().err.split()) == ["word0", "word1"]
