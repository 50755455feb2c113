"""What a replica tells of its work. Values that are numbers of the run are the same at any number of replicas."""

import os
import socket
from typing import TYPE_CHECKING

from samestep.events import Event
from samestep.model.schedule import learning_rate
from samestep.recipe.schema import Recover
from samestep.recover import digest
from samestep.replica import kernels
from samestep.replica.step import Step, Sums
from samestep.sync.flat import trainable

if TYPE_CHECKING:
    from samestep.replica.run import Run


def started(step: Step, generation: int, host: str) -> Event:
    """host: as the recipe names it; empty where it does not."""
    return {
        "event": "started",
        "pid": os.getpid(),
        "host": host or socket.gethostname(),
        "lanes": [step.span.start, step.span.stop],
        "kernels": kernels.describe(),
        "generation": generation,
    }


def digest_due(step: int, wish: Recover) -> bool:
    """Whether the model's digest is taken after this step: as the recipe says, at checkpoints and the step after."""
    regular = wish.digest_every and step % wish.digest_every == 0
    return bool(regular or (wish.checkpoint_every and step > 1 and step % wish.checkpoint_every in (0, 1)))


def tell(run: "Run") -> str | None:
    """Send the event of the last step, if this process has made one. Returns the model's digest where one was taken."""
    if run.step.sums is None or not run.step.number:
        return None
    event = committed(run, run.step.sums)
    run.control.send(event)
    return event.get("digest")


def committed(run: "Run", sums: Sums) -> Event:
    """The last step, counted from 1. bytes_sent: by this replica, since its start."""
    job, number = run.job, run.step.number
    plan = run.feed.step(number - 1)
    event: Event = {
        "event": "step",
        "step": number,
        "loss": sums.loss,
        "gradient_norm": sums.gradient_norm,
        "learning_rate": learning_rate(number - 1, job.steps, job.recipe.optimizer),
        "tokens": plan.targets,
        "epoch": plan.epoch,
        "rows": [plan.places.start, plan.places.stop],
        "seconds": round(run.seconds, 6),
        "bytes_sent": run.bytes_sent,
    }
    if digest_due(number, job.recipe.recover):
        parameters = trainable(run.task.module)
        event["digest"] = digest.of_tensors(parameters)
        if job.tensors:
            event["tensors"] = digest.per_tensor(parameters)
    return event
