"""The training loop of one replica."""

import time

import torch

from samestep.data.order import mix
from samestep.model.schedule import learning_rate
from samestep.recover.disk import Disk
from samestep.replica import kernels, reference
from samestep.replica.board import Phase
from samestep.replica.checkpoints import Checkpoints
from samestep.replica.finish import finish
from samestep.replica.job import Job
from samestep.replica.place import Control
from samestep.replica.report import started, tell
from samestep.replica.setup import feed_of, fixed_of, step_of, task_of
from samestep.replica.watch import Watch
from samestep.wire.collective import Collective


def train(job: Job, wire: Collective, control: Control) -> None:
    """Train from the first step to `job.stop`; then evaluate, save and show a sample if so wished."""
    recipe, phase = job.recipe, control.phase
    feed, held_out, task = feed_of(job), fixed_of(job, "held_out"), task_of(job)
    step = step_of(job, task, wire)
    if recipe.sync.strategy == "exact":
        kernels.agree(wire, kernels.describe())
    control.send(started(step))
    reference.attach(job, task, wire, {"train": feed.reader, "held_out": held_out.reader})
    watch = Watch(job, task, held_out, wire, control)
    checkpoints = Checkpoints(job, step, watch, control, Disk())
    done = checkpoints.resume()
    watch.begin(done)

    for n in range(done, job.stop):
        began = time.perf_counter()
        phase(n + 1, Phase.DATA)
        plan = feed.step(n)
        for lane in step.lanes:
            for micro in range(recipe.batch.accumulate):
                batch = feed.micro_batch(plan, lane, micro)
                torch.manual_seed(mix(recipe.seed, n, lane, micro))
                phase(n + 1, Phase.FORWARD)
                loss = task.loss(batch) / task.terms(plan.targets, plan.pieces)
                phase(n + 1, Phase.BACKWARD)
                step.backward(loss)
        phase(n + 1, Phase.EXCHANGE)
        sums = step.reduce()
        phase(n + 1, Phase.UPDATE)
        rate = learning_rate(n, job.steps, recipe.optimizer)
        step.propose(rate)
        step.commit()
        seconds = time.perf_counter() - began
        digest = tell(control, job, task, plan, n, sums, rate, seconds, wire.bytes_sent) if wire.rank == 0 else None
        enough = watch.after(step.number)
        checkpoints.after(digest)
        if enough:
            break

    checkpoints.wait()
    if job.finish:
        finish(job, task, watch, wire, control, step.number)
    phase(step.number, Phase.DONE)
