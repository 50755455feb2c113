"""Whether the kernels repeat: the gradient of one micro-batch, computed twice."""

import torch

from samestep.data.order import mix
from samestep.replica import kernels
from samestep.replica.board import Phase
from samestep.replica.job import Job
from samestep.replica.place import Control
from samestep.replica.setup import feed_of, task_of
from samestep.sync.flat import trainable
from samestep.wire.collective import Collective


def repeat(job: Job, wire: Collective, control: Control) -> None:
    """Send the names of the tensors whose gradient has other bits the second time."""
    feed, task = feed_of(job), task_of(job)
    plan = feed.step(0)
    named = trainable(task.module)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(mix(job.recipe.seed, 0, 0, 0))
        loss = task.loss(feed.micro_batch(plan, 0, 0)) / plan.targets
        return [loss.detach(), *torch.autograd.grad(loss, list(named.values()), materialize_grads=True)]

    control.phase(1, Phase.BACKWARD)
    first, second = gradients(), gradients()
    differ = [name for name, a, b in zip(["loss", *named], first, second, strict=True) if not torch.equal(a, b)]
    if wire.rank == 0:
        control.send({"event": "repeated", "differ": differ, "kernels": kernels.describe()})
    control.phase(1, Phase.DONE)
