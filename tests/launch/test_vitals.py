import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from samestep.launch import vitals

STAT = "4711 ({}) {} 1 4711 4711 0 -1 4194304 101 0 0 0 250 17 99 99 20 0 1 0 3637970 3133440 394"
STATUS = "Name:\tx\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n"


@contextlib.contextmanager
def started(*command):
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("name", ["cat", "my program", "a) R (b", ") Z 1 2 3 (", ""])
def test_a_name_may_hold_spaces_and_parentheses(name):
    assert vitals.parse(STAT.format(name, "S"), STATUS) == ("S", pytest.approx(267 * vitals.TICK), 42)


def test_a_sleeping_process_uses_no_processor_and_a_stopped_one_is_seen():
    with started("sleep", "60") as process:
        assert until(lambda: vitals.read(process.pid).state == "S")
        process.send_signal(signal.SIGSTOP)
        assert until(lambda: vitals.read(process.pid).state == "T")
        before = vitals.read(process.pid)
        time.sleep(0.2)
        assert vitals.read(process.pid) == before


def test_a_stop_that_was_taken_back_in_between_shows():
    with started("sleep", "60") as process:
        process.send_signal(signal.SIGSTOP)
        assert until(lambda: vitals.read(process.pid).state == "T")
        before = vitals.read(process.pid)
        process.send_signal(signal.SIGCONT)
        assert until(lambda: vitals.read(process.pid).state == "S")
        process.send_signal(signal.SIGSTOP)
        assert until(lambda: vitals.read(process.pid).state == "T")
        assert vitals.read(process.pid).switches > before.switches


def test_the_work_of_all_threads_counts():
    script = """
import threading, time
def work():
    until = time.thread_time() + 0.3
    while time.thread_time() < until: pass
thread = threading.Thread(target=work)
thread.start(), thread.join(), print("done", flush=True), time.sleep(60)
"""
    with started(sys.executable, "-c", script) as process:
        process.stdout.readline()
        assert vitals.read(process.pid).cpu >= 0.3


def test_a_process_that_is_gone_or_dead_has_none():
    process = subprocess.Popen(["true"])
    assert until(lambda: vitals.read(process.pid) is None)  # dead, not yet waited for
    process.wait()
    assert vitals.read(process.pid) is None
    assert vitals.read(os.getpid()).state == "R"
