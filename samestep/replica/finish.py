"""What is done with the trained model: the last evaluation, the model folder, a sample."""

from samestep.replica.board import Phase
from samestep.replica.run import Run
from samestep.replica.saving import save
from samestep.replica.speak import answer


def finish(run: Run) -> None:
    """After the last step that was made."""
    job, task, control, step = run.job, run.task, run.control, run.step.number
    run.watch.end(step)
    if run.wire.rank == 0:
        control.phase(step, Phase.SAVE)
        whole = run.split.gathered(task)
        if whole is None:
            return
        control.send({"event": "saved", "digest": save(whole, job.run / "model")})
        if job.recipe.sample.prompt is not None:
            control.send(answer(job, whole, job.recipe.sample.prompt))
