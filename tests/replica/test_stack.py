import contextlib
import os
import subprocess
import sys
import time

import pytest

from samestep.replica import stack
from samestep.replica.stack import Frame

ANSWER = """Thread 0x00007fa827fff6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007fa82d31eb80 (most recent call first):
  File "/home/a b/data/feed.py", line 88 in read
  File "/home/a b/data/feed.py", line ??? in <listcomp>
  File "<frozen runpy>", line 88 in _run_code
  File "/home/a b/train.py", line 3 in <module>
"""


def test_the_frames_of_the_thread_that_took_the_signal_are_read_innermost_first():
    assert stack.parse(ANSWER) == [
        Frame("/home/a b/data/feed.py", "88", "read"),
        Frame("/home/a b/data/feed.py", "???", "<listcomp>"),
        Frame("<frozen runpy>", "88", "_run_code"),
        Frame("/home/a b/train.py", "3", "<module>"),
    ]


def test_the_current_thread_may_stand_before_others_and_have_a_name():
    main, other = ANSWER.split("\n\n")[1], ANSWER.split("\n\n")[0]
    renamed = main.replace("eb80", "eb80 [python]")
    assert stack.parse(f"{renamed}\n{other}\n") == stack.parse(ANSWER)


def test_few_frames_are_told_in_one_line():
    frames = [Frame(f"/x/data/feed{n}.py", str(n), f"f{n}") for n in range(8)]
    assert stack.tell(frames[:1]) == "f0 at data/feed0.py:0"
    assert stack.tell(frames[:2]) == "f0 at data/feed0.py:0, called from f1 at data/feed1.py:1"
    assert stack.tell(frames) == stack.tell(frames[: stack.SHOWN])
    assert stack.tell([]) == ""


def test_of_the_library_only_the_innermost_frame_is_told():
    library, package = "/usr/lib/python3.11/subprocess.py", "/home/lib/python3.11/site-packages/torch/nn.py"
    frozen, own = Frame("<frozen runpy>", "88", "_run_code"), Frame("/x/y/z.py", "4", "train")
    frames = [Frame(library, "1", "_wait"), Frame(library, "2", "wait"), Frame(package, "3", "forward"), own, frozen]
    assert stack.tell(frames) == (
        "_wait at python3.11/subprocess.py:1, called from forward at torch/nn.py:3, train at y/z.py:4"
    )


@pytest.mark.parametrize("end", [len(ANSWER) - 1, len(ANSWER) - 40, ANSWER.index("\n\n"), 5, 0])
def test_an_answer_that_still_comes_is_not_whole(end):
    assert stack.is_whole(ANSWER)
    assert not stack.is_whole(ANSWER[:end])


@contextlib.contextmanager
def replica(body, listens=True):
    """A process that runs `body`, and the descriptor of its answers."""
    descriptor = stack.create()
    listen = f"stack.register({descriptor})" if listens else ""
    script = f"""
import os, signal, sys, time
from samestep.replica import stack
{listen}
def inner():
    print("ready", flush=True)
    {body}
def outer():
    inner()
outer()
"""
    process = subprocess.Popen([sys.executable, "-c", script], pass_fds=[descriptor], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield process, descriptor
    finally:
        process.kill()
        process.communicate()
        os.close(descriptor)


def wait_for_stop(process):
    while os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT).si_code != os.CLD_STOPPED:
        time.sleep(0.01)


def test_a_replica_that_sleeps_answers_and_sleeps_on():
    with replica("time.sleep(60)") as (process, descriptor):
        for _ in range(2):
            said = stack.ask(process.pid, descriptor)
            assert said.startswith("inner at <string>:")
            assert said.endswith(", called from outer at <string>:9, <module> at <string>:10")
        assert process.poll() is None


def test_a_stopped_replica_answers_only_when_it_may_go_on():
    with replica("os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)") as (process, descriptor):
        wait_for_stop(process)
        assert stack.ask(process.pid, descriptor, 0.1) == ""
        assert "inner at <string>:" in stack.ask(process.pid, descriptor, 2, resume=True)


def test_a_process_that_does_not_expect_the_signal_is_not_sent_it():
    with replica("time.sleep(60)", listens=False) as (process, descriptor):
        assert stack.ask(process.pid, descriptor, 0.1) == ""
        assert process.poll() is None


def test_a_process_that_is_gone_does_not_answer():
    with replica("pass") as (process, descriptor):
        process.wait()
        assert stack.ask(process.pid, descriptor, 0.1) == ""
