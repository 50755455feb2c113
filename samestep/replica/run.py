"""What a replica works with: the data, the model, and once it is among others the step, the watch, the checkpoints."""

import time
from dataclasses import dataclass, field

import torch

from samestep.data.feed import Feed, Fixed, Reader
from samestep.model.task import Task
from samestep.recover.disk import Disk
from samestep.replica import device
from samestep.replica.checkpoints import Checkpoints
from samestep.replica.islands import Islands
from samestep.replica.job import Job
from samestep.replica.kernels import PROCESSOR
from samestep.replica.place import Control
from samestep.replica.report import started
from samestep.replica.setup import feed_of, fixed_of, split_of, step_of
from samestep.replica.spent import memory
from samestep.replica.split import WHOLE, Split
from samestep.replica.state import Kept
from samestep.replica.step import Step
from samestep.replica.watch import Watch
from samestep.wire.collective import Collective


@dataclass
class Run:
    job: Job
    control: Control
    feed: Feed
    held_out: Fixed
    task: Task
    device: torch.device = PROCESSOR
    split: Split = WHOLE
    made: Step | Islands | None = None
    generation: int = 0
    seconds: list[float] = field(default_factory=list)  # that steps took, the last ones
    _sent: int = 0  # bytes, in generations before
    _short: int = 0  # the last generation in which memory could not be shared
    wire: Collective = field(init=False)
    watch: Watch = field(init=False)
    checkpoints: Checkpoints = field(init=False)

    @property
    def step(self) -> Step | Islands:
        assert self.made is not None  # from the first generation on
        return self.made

    @property
    def readers(self) -> dict[str, Reader]:
        return {"train": self.feed.reader, "held_out": self.held_out.reader}

    def took(self, count: int) -> list[float]:
        """Seconds of the last `count` steps. One that was cut off, and committed alone, is given as long as others."""
        del self.seconds[:-count]
        return [self.seconds[0] if self.seconds else 0.0] * (count - len(self.seconds)) + self.seconds

    @property
    def bytes_sent(self) -> int:
        """By this replica, since its start."""
        return self._sent + self.wire.bytes_sent

    @property
    def over(self) -> bool:
        """Whether no further step is due."""
        return self.step.number >= self.job.stop or self.watch.enough

    def tell_of_shortage(self) -> None:
        """Once a generation."""
        if self.wire.shortage and self._short != self.generation:
            self._short = self.generation
            self.control.send({"event": "shared_memory_failed", "reason": self.wire.shortage})

    def tell_of_time(self, last: bool = False) -> None:
        """What the steps since the last telling have spent, where it is due. last: in any case."""
        spent, now = self.control.spent, time.monotonic()
        if last or spent.due(now):
            self.control.send(
                spent.tell(self.step.number, now)
                | {"bytes_sent": self.bytes_sent}
                | memory()
                | device.memory(self.device)
            )

    def make(self, wire: Collective) -> None:
        """The step with blank moments, to be filled by others."""
        self.wire = wire
        self.made = step_of(self.job, self.task, wire, self.split)
        self.watch = Watch(self.job, self.task, self.held_out, self.control, self.split)
        self.checkpoints = Checkpoints(self.job, self.made, self.watch, self.control, Disk())

    def begin(self, wire: Collective) -> None:
        """The same from the checkpoint that the job names, or from the first step."""
        self.make(wire)
        self.checkpoints.resume()

    def enter(self, wire: Collective, generation: int, kept: Kept) -> None:
        """Take part in a generation. kept: of the share in it."""
        if self.wire is not wire:
            self._sent += self.wire.bytes_sent
        self.wire, self.generation = wire, generation
        if kept is not self.step.state.kept:
            self.step.regroup(wire, kept)
        self.watch.enter(wire)
        self.checkpoints.enter(wire, generation)
        self.step.seal()
        self.control.spent.begin(self.step.number)
        self.control.send(started(self.step, generation, self.control.place.host))


def prepare(job: Job, control: Control) -> Run:
    """What can be made before others are there; the slow part of a start."""
    place = device.settle(job.recipe.compute.device, job.recipe.sync.strategy, control.place.local)
    task, split = split_of(job, control.place)
    task.module.to(place)
    return Run(job, control, feed_of(job), fixed_of(job, "held_out"), task, place, split)
