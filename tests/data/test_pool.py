import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import psutil
import pytest

from samestep.data.pool import AHEAD, FEW, ordered
from samestep.errors import ClusterError

DOUBLE = partial(partial, int.__mul__, 2)  # called once it is the work: importable in a worker, as lambdas are not


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_items_whatever_the_workers(workers: int) -> None:
    assert list(ordered(DOUBLE, range(40), workers)) == list(range(0, 80, 2))


@pytest.mark.parametrize("count", range(FEW + 1))
def test_a_few_items_start_no_process(count: int) -> None:
    assert list(ordered(lambda: abs, range(count), 2)) == list(range(count))  # a lambda cannot be sent anywhere


def test_no_more_items_are_read_than_workers_can_have_in_flight() -> None:
    taken = itertools.count()
    items = (next(taken) for _ in range(100))
    with closing(ordered(DOUBLE, items, 2)) as results:
        for done in range(1, 20):
            next(results)
            ahead = int(repr(taken).removeprefix("count(")[:-1]) - done
            assert ahead < AHEAD * 2


def left_behind(parent: psutil.Process) -> list[int]:
    """Workers only: Python's tracker of semaphores stays for the next pool."""
    return [child.pid for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]


def test_an_error_in_a_worker_is_raised_here_and_no_process_is_left() -> None:
    items = ["1", "2", "3", "four", *map(str, range(5, 100))]
    with closing(ordered(partial(partial, int), items, 2)) as results:
        assert list(itertools.islice(results, 3)) == [1, 2, 3]
        with pytest.raises(ValueError, match="four"):
            next(results)
    assert left_behind(psutil.Process()) == []


def test_what_is_left_early_ends_its_processes() -> None:
    with closing(ordered(DOUBLE, itertools.count(), 2)) as results:
        assert next(results) == 0
        assert len(left_behind(psutil.Process())) == 2
    assert left_behind(psutil.Process()) == []


def test_a_killed_worker_is_one_line() -> None:
    kill = partial(partial, signal.raise_signal)
    with pytest.raises(ClusterError, match=r"a process that reads data was killed .* free some memory") as caught:
        list(ordered(kill, [signal.SIGCHLD, signal.SIGCHLD, signal.SIGKILL, signal.SIGCHLD], 2))
    assert "\n" not in str(caught.value)


def test_workers_ignore_ctrl_c_which_is_for_the_parent() -> None:
    interrupt = partial(partial, signal.raise_signal)
    assert list(ordered(interrupt, [signal.SIGINT] * 4, 2)) == [None] * 4


@pytest.fixture
def parent() -> Iterator[psutil.Process]:
    """A process with two workers that sleep."""
    script = (
        "import itertools, time; from functools import partial; from samestep.data.pool import ordered\n"
        "list(ordered(partial(partial, time.sleep), itertools.repeat(0.05), 2))"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as started:
        process = psutil.Process(started.pid)
        while len(left_behind(process)) < 2:
            time.sleep(0.02)
        time.sleep(0.5)  # so that they are at work
        yield process
        started.kill()


def test_no_worker_outlives_a_killed_parent(parent: psutil.Process) -> None:
    workers = parent.children()
    parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
