"""What a replica tells of its work. Values that are numbers of the run are the same at any number of replicas."""

import os
import socket
from typing import Any

from samestep.data.feed import StepPlan
from samestep.events import Event
from samestep.model.task import Task
from samestep.recipe.schema import Recover
from samestep.recover import digest
from samestep.replica import kernels
from samestep.replica.job import Job
from samestep.replica.place import Control
from samestep.replica.step import Step, Sums
from samestep.sync.flat import trainable


def started(step: Step) -> Event:
    return {
        "event": "started",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "lanes": [step.lanes.start, step.lanes.stop],
        "kernels": kernels.describe(),
    }


def digest_due(step: int, wish: Recover) -> bool:
    """Whether the model's digest is taken after this step: as the recipe says, at checkpoints and the step after."""
    regular = wish.digest_every and step % wish.digest_every == 0
    return bool(regular or (wish.checkpoint_every and step > 1 and step % wish.checkpoint_every in (0, 1)))


def tell(control: Control, *committing: Any) -> str | None:
    """Send the event of a step, made of what `committed` takes. Returns the model's digest where one was taken."""
    event = committed(*committing)
    control.send(event)
    return event.get("digest")


def committed(
    job: Job, task: Task, plan: StepPlan, n: int, sums: Sums, rate: float, seconds: float, bytes_sent: int
) -> Event:
    """One step; `n` counts from 0, the event's `step` from 1. bytes_sent: by replica 0, since the start."""
    event: Event = {
        "event": "step",
        "step": n + 1,
        "loss": sums.loss,
        "gradient_norm": sums.gradient_norm,
        "learning_rate": rate,
        "tokens": plan.targets,
        "epoch": plan.epoch,
        "rows": [plan.places.start, plan.places.stop],
        "seconds": round(seconds, 6),
        "bytes_sent": bytes_sent,
    }
    if digest_due(n + 1, job.recipe.recover):
        parameters = trainable(task.module)
        event["digest"] = digest.of_tensors(parameters)
        if job.tensors:
            event["tensors"] = digest.per_tensor(parameters)
    return event
