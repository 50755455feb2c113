"""What a replica tells of its work. Values that are numbers of the run are the same at any number of replicas."""

import os
import socket
from typing import TYPE_CHECKING

from samestep.events import Event
from samestep.model.schedule import learning_rate
from samestep.recipe.schema import Recover
from samestep.recover import digest
from samestep.replica import kernels
from samestep.replica.agreement import Sums
from samestep.replica.islands import Islands
from samestep.replica.step import Step
from samestep.sync.legs import passed

if TYPE_CHECKING:
    from samestep.replica.run import Run


def started(step: Step | Islands, generation: int, host: str) -> Event:
    """host: as the recipe names it; empty where it does not."""
    return {
        "event": "started",
        "pid": os.getpid(),
        "host": host or socket.gethostname(),
        "lanes": [step.span.start, step.span.stop],
        "kernels": kernels.describe(device := step.parameters[0].device),
        "device": str(device),
        "generation": generation,
    }


def digest_due(since: int, step: int, wish: Recover) -> bool:
    """Whether the model's digest is taken after the commit of `step`, before which `since` was committed: as the recipe
    says, at checkpoints and the commit after.
    """
    regular, saved = (passed(every, since, step) for every in (wish.digest_every, wish.checkpoint_every))
    before = step - since  # steps a commit
    return regular or saved or (since >= before and passed(wish.checkpoint_every, since - before, since))


def tell(run: "Run") -> str | None:
    """Send the events of the steps of the last commit, if this process has made one. Returns the model's digest where
    one was taken.
    """
    event: Event = {}
    count = len(run.step.told)
    for number, (sums, seconds) in enumerate(
        zip(run.step.told, run.took(count), strict=True), run.step.number - count + 1
    ):
        event = committed(run, number, sums, seconds)
        if number == run.step.number:
            event |= _digests(run)
        run.control.send(event)
    return event.get("digest")


def committed(run: "Run", number: int, sums: Sums, seconds: float) -> Event:
    """A step, counted from 1. bytes_sent: by this replica, since its start."""
    job = run.job
    plan = run.feed.step(number - 1)
    return {
        "event": "step",
        "step": number,
        "loss": sums.loss,
        "gradient_norm": sums.gradient_norm,
        "learning_rate": learning_rate(number - 1, job.steps, job.recipe.optimizer),
        "tokens": plan.targets,
        "epoch": plan.epoch,
        "rows": [plan.places.start, plan.places.stop],
        "seconds": round(seconds, 6),
        "bytes_sent": run.bytes_sent,
    }


def _digests(run: "Run") -> Event:
    """Of the model as it is now, where they are due."""
    if not digest_due(run.step.since, run.step.number, run.job.recipe.recover):
        return {}
    tensors = {name: digest.per_tensor({name: values})[name] for name, values in run.step.whole()}
    found: Event = {"digest": digest.combine(tensors)}
    return found | ({"tensors": tensors} if run.job.tensors else {})
