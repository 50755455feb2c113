"""The training loop of one replica."""

import time

import torch

from samestep.data.order import mix
from samestep.errors import PeerLost
from samestep.model.schedule import learning_rate
from samestep.replica.board import Phase, Wish
from samestep.replica.crew import Crew
from samestep.replica.finish import finish
from samestep.replica.job import Job
from samestep.replica.notfinite import traced
from samestep.replica.place import Control
from samestep.replica.report import tell
from samestep.replica.run import Run
from samestep.wire.collective import Operation, Tag, everybody_ready


def train(job: Job, control: Control) -> None:
    """Train to `job.stop`, with those that are left when a replica is lost."""
    crew = Crew(job, control)
    over = False
    while not over:
        try:
            over = steps(crew.join())
        except PeerLost:
            over = False  # the engine knows who it was
        if not over:
            crew.leave()
    crew.close()


def steps(run: Run) -> bool:
    """Steps of one generation. True at the end of the job, False where a new generation is wished for."""
    recipe, step, task, phase = run.job.recipe, run.step, run.task, run.control.phase
    wish = after(run)  # what the last step entails may have been cut off by a death
    while wish is Wish.NONE and not run.over:
        n, began = step.number, time.perf_counter()
        phase(n + 1, Phase.DATA)
        plan = run.feed.step(n)
        for lane in step.lanes:
            for micro in range(recipe.batch.accumulate):
                batch = run.feed.micro_batch(plan, lane, micro)
                torch.manual_seed(mix(recipe.seed, n, lane, micro))
                phase(n + 1, Phase.FORWARD)
                loss = task.loss(batch) / task.terms(plan.targets, plan.pieces)
                phase(n + 1, Phase.BACKWARD)
                step.backward(loss)
        phase(n + 1, Phase.EXCHANGE)
        with traced(run, plan):
            step.reduce(run.control.wish(run.generation))
        phase(n + 1, Phase.UPDATE)
        step.propose(learning_rate(n, run.job.steps, recipe.optimizer))
        step.commit()
        run.seconds.append(time.perf_counter() - began)
        wish = after(run)
    return wish is not Wish.GATHER and end(run, stopped=wish is Wish.STOP)


def after(run: Run) -> Wish:
    """What committed steps entail. Done again by the next generation where a replica is lost in it; the engine drops
    what it has been told before.
    """
    if run.step.open:
        return Wish.NONE
    run.tell_of_shortage()
    digest = tell(run) if run.wire.rank == 0 else None
    run.watch.after(run.step.since, run.step.number)
    wish = run.step.told[-1].wish if run.step.told else Wish.NONE
    run.checkpoints.after(digest, wish is Wish.STOP)
    run.tell_of_time()
    return wish


def end(run: Run, stopped: bool) -> bool:
    run.checkpoints.wait()
    run.step.check()
    if run.job.finish and not stopped:
        finish(run)
    run.tell_of_time(last=True)
    run.control.phase(run.step.number, Phase.DONE)
    everybody_ready(run.wire, Tag(run.step.number, Operation.END))
    return True
