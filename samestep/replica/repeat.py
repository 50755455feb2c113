"""Whether the kernels repeat: the gradient of one micro-batch, computed twice."""

from dataclasses import replace

import torch

from samestep.data.order import mix
from samestep.replica import device, kernels
from samestep.replica.board import Phase
from samestep.replica.job import Job
from samestep.replica.place import Control, only_wire
from samestep.replica.setup import feed_of, split_of
from samestep.sync.flat import here, trainable


def repeat(job: Job, control: Control) -> None:
    """Send the names of the tensors whose gradient has other bits the second time. Done by one replica."""
    only_wire(control).close()
    feed, (task, _) = feed_of(job), split_of(job, control.place)
    place = device.settle(job.recipe.compute.device, job.recipe.sync.strategy, control.place.local)
    task.module.to(place)
    plan, named = feed.step(0), trainable(task.module)
    batch = feed.micro_batch(plan, 0, 0)
    if task.log_probabilities is not None:
        with torch.no_grad():
            batch = replace(batch, reference=task.log_probabilities(batch))

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(mix(job.recipe.seed, 0, 0, 0))
        loss = task.loss(batch) / task.terms(plan.targets, plan.pieces)
        loss.backward()  # type: ignore[no-untyped-call]
        return [loss.detach(), *map(_taken, named.values())]

    control.phase(1, Phase.BACKWARD)
    first, second = gradients(), gradients()
    differ = [name for name, a, b in zip(["loss", *named], first, second, strict=True) if not torch.equal(a, b)]
    control.send({"event": "repeated", "differ": differ, "kernels": kernels.describe(place)})
    control.phase(1, Phase.DONE)


def _taken(parameter: torch.Tensor) -> torch.Tensor:
    """A copy of its gradient, or of the part that is here; zeros where it has none."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(here(parameter)) if gradient is None else here(gradient).clone()
