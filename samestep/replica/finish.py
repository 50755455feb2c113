"""What is done with the trained model: the last evaluation, the model folder, a sample."""

from samestep.model.task import Task
from samestep.replica.board import Phase
from samestep.replica.job import Job
from samestep.replica.place import Control
from samestep.replica.saving import save
from samestep.replica.speak import answer
from samestep.replica.watch import Watch
from samestep.wire.collective import Collective


def finish(job: Job, task: Task, watch: Watch, wire: Collective, control: Control, step: int) -> None:
    """step: the last one that was made."""
    watch.end(step)
    if wire.rank == 0:
        control.phase(step, Phase.SAVE)
        control.send({"event": "saved", "digest": save(task, job.run / "model")})
        if job.recipe.sample.prompt is not None:
            control.send(answer(job, task, job.recipe.sample.prompt))
