"""Real processes that hang in every way one can think of, each to be named; and some that only run seldom."""

import contextlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

from samestep.launch.lookout import Lookout, Seat
from samestep.recover.silence import Patience
from samestep.replica import board, stack
from samestep.replica.board import Board, Phase

SCRIPT = Path(__file__).with_name("hangs.py")
HANGS = {hang.__name__: phase.name.lower() for hang, phase in runpy.run_path(str(SCRIPT))["HANGS"].items()}
WORKING = {"endless_loop", "backtracking", "endless_yields"}  # these use the processor
DEADLOCKS = ("lost_message", "crossed")


class Group:
    """Replicas with a board and a lookout, as an engine has them."""

    def __init__(self, hang, size, stack_of_resources, seconds=0.1):
        defer = stack_of_resources.callback
        self.hang, self.size = hang, size
        page, self.answers = board.create(size), [stack.create() for _ in range(size)]
        for descriptor in (page, *self.answers):
            defer(os.close, descriptor)
        self.board = Board(page, size)
        defer(self.board.close)
        ends = [[] for _ in range(size)]
        for left, right in combinations(range(size), 2):
            for rank, end in zip((left, right), socket.socketpair(), strict=True):
                ends[rank].append(end)
        self.processes = [self._start(rank, page, ends[rank], seconds) for rank in range(size)]
        for end in (end for row in ends for end in row):
            end.close()
        defer(self.end)
        self.lookout = Lookout(self.board)
        self.found = []

    def _start(self, rank, page, ends, seconds):
        descriptors = [end.fileno() for end in ends]
        arguments = (rank, self.size, page, self.answers[rank], self.hang, seconds, *descriptors)
        return subprocess.Popen(
            [sys.executable, SCRIPT, *map(str, arguments)],
            pass_fds=[page, self.answers[rank], *descriptors],
            start_new_session=True,
        )

    def look(self):
        """As an engine does: ends those that will not go on."""
        if any(found.finding.fence for found in self.found):
            self.end()
            return
        now = time.monotonic()
        for finding in self.lookout.look({rank: Seat(rank, p.pid) for rank, p in enumerate(self.processes)}, now):
            rank = 1 if finding.replica is None else finding.replica
            resume = finding.kind == "stopped"
            after = now - self.board.read(rank).since
            where = stack.ask(self.processes[rank].pid, self.answers[rank], resume=resume)
            self.found.append(SimpleNamespace(finding=finding, after=after, stack=where))

    def end(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def groups():
    """All hangs side by side, looked at once a second until each is named, or for 25 seconds."""
    with contextlib.ExitStack() as resources:
        groups = {hang: Group(hang, 2 if hang == "crossed" else 3, resources) for hang in (*HANGS, *DEADLOCKS)}
        until = time.monotonic() + 25
        while time.monotonic() < until and not all(group.found for group in groups.values()):
            time.sleep(1)
            for group in groups.values():
                group.look()
        for name, group in groups.items():
            for found in group.found:
                print(f"{name:15} {found.after:5.1f} s  {found.finding.sentence}  [{found.stack}]")
        yield groups


@pytest.mark.slow
@pytest.mark.parametrize("hang", HANGS)
def test_a_hang_is_named_with_its_place_and_its_stack_within_ten_seconds(groups, hang):
    (found,) = groups[hang].found
    kind = "stopped" if hang == "stopped" else "slow" if hang in WORKING else "stuck"
    finding = found.finding
    assert (finding.kind, finding.replica, finding.step, finding.phase) == (kind, 1, 7, HANGS[hang])
    assert finding.fence == (kind != "slow")
    assert f" in step 7, {HANGS[hang]}, for " in finding.sentence
    assert found.after < 10
    assert f"{hang} at launch/hangs.py:" in found.stack


@pytest.mark.slow
def test_a_replica_that_misses_a_message_is_told_from_those_that_are_further_on(groups):
    (found,) = groups["lost_message"].found
    assert (found.finding.kind, found.finding.replica, found.finding.fence) == ("deadlocked", 1, True)
    assert "replica 1 in step 6, update; replicas 0, 2 in step 7, exchange" in found.finding.sentence
    assert found.after < 10


@pytest.mark.slow
def test_where_all_wait_in_one_exchange_none_is_blamed_but_all_are_named(groups):
    (found,) = groups["crossed"].found
    assert (found.finding.kind, found.finding.replica, found.finding.fence) == ("deadlocked", None, True)
    assert "replicas 0, 1 in step 7, exchange" in found.finding.sentence
    assert found.after < 10


@contextlib.contextmanager
def little_by_cgroup(pids):
    """A fifth of one processor for all, by cgroup v1 or v2."""
    for folder, limit in ((Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us"), (Path("/sys/fs/cgroup"), "cpu.max")):
        group = folder / f"samestep-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text("20000" if limit == "cpu.cfs_quota_us" else "20000 100000")
            for pid in pids:
                (group / "cgroup.procs").write_text(str(pid))
            yield
        except OSError as error:
            pytest.skip(f"no quota of a cgroup can be set here ({error})")
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    (folder / "cgroup.procs").write_text(str(pid))
            group.rmdir()
        return
    pytest.skip("no cgroup with a quota can be made here")


@contextlib.contextmanager
def little_by_signals(pids):
    """20 ms of every 100, by stopping all in between: they are mostly seen stopped."""
    done = threading.Event()

    def cycle():
        while not done.is_set():
            for name, seconds in ((signal.SIGCONT, 0.02), (signal.SIGSTOP, 0.08)):
                for pid in pids:
                    os.kill(pid, name)
                time.sleep(seconds)

    thread = threading.Thread(target=cycle)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("little", [little_by_cgroup, little_by_signals])
def test_replicas_with_a_fifth_of_a_processor_that_wait_save_and_work_unevenly_raise_no_alarm(little):
    with contextlib.ExitStack() as resources:
        group = Group("none", 3, resources)
        with little([process.pid for process in group.processes]):
            for second in range(120):
                time.sleep(1)
                group.look()
                if second >= 15 and group.board.read(0).step >= 3:  # beyond the save
                    break
        assert second < 119
        assert all(process.poll() is None for process in group.processes)
        assert [found.finding.sentence for found in group.found] == []


def test_a_finding_is_told_once_and_again_where_it_comes_back():
    with contextlib.ExitStack() as resources:
        page = board.create(2)
        resources.callback(os.close, page)
        lines = Board(page, 2)
        resources.callback(lines.close)
        sleeper = resources.enter_context(subprocess.Popen(["sleep", "60"]))
        resources.callback(sleeper.kill)
        lines.write(0, 3, Phase.DATA)
        lines.write(1, 3, Phase.DATA)
        time.sleep(0.5)  # all looks come at once, so what it uses to start must not fall between them
        lookout, began = Lookout(lines, Patience(quiet=2.0)), time.monotonic()
        seats = {0: Seat(0, sleeper.pid), 1: Seat(1, os.getpid())}

        def looks(*seconds):
            return [[f.replica for f in lookout.look(seats, began + s)] for s in seconds]

        assert looks(0, 1, 2, 3) == [[], [], [0], []]
        lines.write(0, 3, Phase.DATA)  # it went on, and hangs again
        assert looks(4, 5, 6, 7) == [[], [], [0], []]
        lookout.forget()
        assert looks(8, 9, 10, 11) == [[], [], [0], []]


def test_a_process_that_is_gone_is_not_looked_at():
    gone = subprocess.Popen(["true"])
    gone.wait()
    page = board.create(1)
    lines = Board(page, 1)
    try:
        lookout = Lookout(lines, Patience(quiet=0.0, gap=100.0))
        lines.write(0, 3, Phase.DATA)
        assert [lookout.look({0: Seat(0, gone.pid)}, time.monotonic()) for _ in range(3)] == [[], [], []]
    finally:
        lines.close()
        os.close(page)
