"""A replica that is in the way of the others: `python -m samestep.replica`, but for HANG="replica step kind replicas".

locked: it waits for a thread of its data for ever. size, dtype, step: it sends something else than is due.
From that step on all take their time for as long as they are fewer than `replicas`, so that one can still join.
"""

import os
import threading
import time
from pathlib import Path

import torch

from samestep.data.feed import Feed
from samestep.replica.__main__ import main
from samestep.replica.run import Run
from samestep.replica.step import Step
from samestep.wire.collective import Operation
from samestep.wire.shared_memory import SharedMemory

REPLICA, STEP, KIND, REPLICAS = os.environ["HANG"].split()
PACE = 0.3  # seconds a step
OTHERWISE = {  # what is sent instead of a tag and a tensor
    "size": lambda tag, tensor: (tag, tensor[:-16]),
    "dtype": lambda tag, tensor: (tag, tensor.view(torch.uint8)),
    "step": lambda tag, tensor: (tag._replace(step=tag.step - 1), tensor),
}
runs: list[Run] = []
enter, micro_batch, reduce, borrow = Run.enter, Feed.micro_batch, Step.reduce, SharedMemory.borrow


def at_fault() -> bool:
    return bool(runs) and runs[0].control.place.replica == int(REPLICA) and runs[0].step.number == int(STEP) - 1


def entering(run: Run, *given: object) -> None:
    runs[:] = [run]
    enter(run, *given)


def reading(feed: Feed, *given: object) -> object:
    if at_fault() and KIND == "locked":
        lock, taken = threading.Lock(), threading.Event()
        threading.Thread(target=read_ahead, args=(lock, taken), daemon=True).start()
        taken.wait()
        Path(os.environ["HANG_BEGAN"]).write_text(str(time.monotonic()))
        lock.acquire()
    return micro_batch(feed, *given)


def read_ahead(lock: threading.Lock, taken: threading.Event) -> None:
    with lock:
        taken.set()
        threading.Event().wait()


def reducing(step: Step, *given: object) -> object:
    if step.number >= int(STEP) - 1 and runs[0].wire.size < int(REPLICAS):
        time.sleep(PACE)
    return reduce(step, *given)


def borrowing(wire: SharedMemory, tag, sends, receives):
    if at_fault() and tag.operation == Operation.REDUCE and KIND in OTHERWISE:
        for peer, tensors in sends.items():
            for tensor in tensors:
                other, changed = OTHERWISE[KIND](tag, tensor)
                borrow(wire, other, {peer: [changed]}, {})
        sends = {}
    return borrow(wire, tag, sends, receives)


Run.enter, Feed.micro_batch, Step.reduce, SharedMemory.borrow = entering, reading, reducing, borrowing
if __name__ == "__main__":
    raise SystemExit(main())
