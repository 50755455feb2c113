"""What a replica tells of its work. Values that are numbers of the run are the same at any number of replicas."""

import os
import socket

from samestep.data.feed import StepPlan
from samestep.events import Event
from samestep.model.task import Task
from samestep.recover import digest
from samestep.replica import kernels
from samestep.replica.job import Job
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
    every = job.recipe.recover.digest_every
    if every and (n + 1) % every == 0:
        parameters = trainable(task.module)
        event["digest"] = digest.of_tensors(parameters)
        if job.tensors:
            event["tensors"] = digest.per_tensor(parameters)
    return event
