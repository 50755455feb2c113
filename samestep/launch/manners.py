"""How the engine shares cores with replicas."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def scheduled(policy: int) -> Iterator[None]:
    """Let Linux schedule this thread by a policy, os.SCHED_OTHER or os.SCHED_BATCH, for a while.

    What is SCHED_BATCH and wakes up does not push another thread off its core. An engine that did so at each step that
    it is told of held both of two replicas up, as each waits for the other: 0.4 % of a step of 50 ms.
    """
    before, ordinary = os.sched_getscheduler(0), (os.SCHED_OTHER, os.SCHED_BATCH)
    if before not in ordinary or before == policy:  # a user's own choice stays
        yield
        return
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
        yield
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))
