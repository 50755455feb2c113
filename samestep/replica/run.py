"""What a replica works with: the data, the model, and once it is among others the step, the watch, the checkpoints."""

from dataclasses import dataclass, field

from samestep.data.feed import Feed, Fixed, Reader
from samestep.model.task import Task
from samestep.recover.disk import Disk
from samestep.replica.checkpoints import Checkpoints
from samestep.replica.job import Job
from samestep.replica.place import Control
from samestep.replica.report import started
from samestep.replica.setup import feed_of, fixed_of, step_of, task_of
from samestep.replica.state import Moments
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
    made: Step | None = None
    generation: int = 0
    seconds: float = 0.0  # of the last step
    _sent: int = 0  # bytes, in generations before
    wire: Collective = field(init=False)
    watch: Watch = field(init=False)
    checkpoints: Checkpoints = field(init=False)

    @property
    def step(self) -> Step:
        assert self.made is not None  # from the first generation on
        return self.made

    @property
    def readers(self) -> dict[str, Reader]:
        return {"train": self.feed.reader, "held_out": self.held_out.reader}

    @property
    def bytes_sent(self) -> int:
        """By this replica, since its start."""
        return self._sent + self.wire.bytes_sent

    @property
    def over(self) -> bool:
        """Whether no further step is due."""
        return self.step.number >= self.job.stop or self.watch.enough

    def make(self, wire: Collective) -> None:
        """The step with blank moments, to be filled by others."""
        self.wire = wire
        self.made = step_of(self.job, self.task, wire)
        self.watch = Watch(self.job, self.task, self.held_out, self.control)
        self.checkpoints = Checkpoints(self.job, self.made, self.watch, self.control, Disk())

    def begin(self, wire: Collective) -> None:
        """The same from the checkpoint that the job names, or from the first step."""
        self.make(wire)
        self.checkpoints.resume()

    def enter(self, wire: Collective, generation: int, moments: Moments) -> None:
        """Take part in a generation. moments: of the share in it."""
        if self.wire is not wire:
            self._sent += self.wire.bytes_sent
        self.wire, self.generation = wire, generation
        if moments is not self.step.state.moments:
            self.step.regroup(wire, moments)
        self.watch.enter(wire)
        self.checkpoints.enter(wire, generation)
        self.step.seal()
        self.control.send(started(self.step, generation, self.control.place.host))


def prepare(job: Job, control: Control) -> Run:
    """What can be made before others are there; the slow part of a start."""
    return Run(job, control, feed_of(job), fixed_of(job, "held_out"), task_of(job))
