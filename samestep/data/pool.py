"""Work on a stream in parallel processes, with results in the order of the stream and bounded memory."""

import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from samestep.errors import ClusterError

Item = TypeVar("Item")
Result = TypeVar("Result")
Make = Callable[[], Callable[[Item], Result]]

FEW = 2  # items that are done here, where starting processes would take longer
AHEAD = 2  # items in flight for each worker: one that it works on and one that waits
PR_SET_PDEATHSIG = 1  # linux/prctl.h

_work: list[Callable[[Any], Any]] = []  # what a worker process does; an executor has no other place to keep it


def ordered(make: Make[Item, Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """The results of `make()` on each item, in the order of the items: the same for any number of workers.

    make: is sent to each worker process and called there once; it must not fail. Close the generator where it is left
    early. Raises what the work raises, and ClusterError where a worker was killed. No worker outlives this process.
    """
    stream = iter(items)
    first = list(itertools.islice(stream, FEW + 1))
    here = workers == 1 or len(first) <= FEW
    stream = itertools.chain(first, stream)
    yield from map(make(), stream) if here else _parallel(make, stream, workers)


def _parallel(make: Make[Item, Result], items: Iterator[Item], workers: int) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks in whatever state they are
    pool = ProcessPoolExecutor(workers, context, _begin, (make, os.getpid()))
    flying: deque[Future[Result]] = deque()
    try:
        for item in items:
            flying.append(pool.submit(_do, item))
            if len(flying) == AHEAD * workers:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    except BrokenProcessPool as error:
        raise ClusterError(
            f"a process that reads data was killed (one of {workers}; out of memory is the usual reason: see dmesg); "
            f"free some memory, then start again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(make: Make[Any, Any], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it was asked for
        os.kill(os.getpid(), signal.SIGKILL)
    _work.append(make())


def _do(item: Any) -> Any:
    return _work[0](item)
