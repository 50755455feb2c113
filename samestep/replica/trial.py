"""A few real steps before a run: what their phases take, and what a process takes before there is a model."""

import statistics
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from samestep.data.feed import Feed, MicroBatch
from samestep.data.order import mix
from samestep.model import lora
from samestep.model.gpt import GPT, Shape
from samestep.model.optim import rule
from samestep.model.schedule import learning_rate
from samestep.model.task import Task
from samestep.recipe.schema import Lora
from samestep.replica import device
from samestep.replica.board import Phase
from samestep.replica.islands import Islands
from samestep.replica.job import Job
from samestep.replica.place import Control
from samestep.replica.setup import step_of
from samestep.replica.step import Step
from samestep.wire.collective import Collective, Operation, Tag, all_gather

STEPS = 5  # the first does not count
LONG = 5.0  # seconds of a step after which two are enough
STATUS, MAPS = Path("/proc/self/status"), Path("/proc/self/maps")
SMALL = Shape(layers=1, width=64, heads=1, vocabulary=512, context=16)


def program(job: Job) -> dict[str, int]:
    """Bytes that this process takes before there is a model, after a step of the smallest one: libraries, and what they
    load when they are first used.
    """
    module = GPT(SMALL)
    if job.recipe.model.lora:
        lora.adapt(module, Lora(rank=4), head=None)
    with torch.autocast("cpu", torch.bfloat16, enabled=job.recipe.model.dtype == "bfloat16"):
        tokens = torch.zeros(2, SMALL.context, dtype=torch.int64)
        module(tokens, tokens).backward()
    chosen = rule(job.recipe.optimizer)
    weights, gradient, *moments = (torch.zeros(64) for _ in range(2 + chosen.moments))
    chosen.update([weights], [gradient], [[each] for each in moments], [1], 1e-3, True)
    return resident()


def resident(status: Path = STATUS) -> dict[str, int]:
    """Bytes of this process. private: its own alone. mapped: of files."""
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    private, mapped = (1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return {"private": private, "mapped": mapped}


def frozen(task: Task, maps: Path = MAPS) -> dict[str, int | bool]:
    """Bytes of the weights that are not trained. mapped: of these, in their file. wide: whether a matrix is float32."""
    still = [tensor for tensor in task.module.parameters() if not tensor.requires_grad]
    files = in_files(maps)
    there = [tensor.nbytes for tensor in still if any(start <= tensor.data_ptr() < stop for start, stop in files)]
    wide = any(tensor.dtype == torch.float32 and tensor.dim() > 1 for tensor in still)
    return {"all": sum(tensor.nbytes for tensor in still), "mapped": sum(there), "wide": wide}


def in_files(maps: Path) -> list[tuple[int, int]]:
    """The addresses at which files lie in this process's memory."""
    lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if len(line) == 6 and line[5].startswith("/")]
    return [(int(start, 16), int(stop, 16)) for start, stop in spans]


def referred(task: Task, batch: MicroBatch) -> MicroBatch:
    """With what dpo needs of its reference."""
    if task.log_probabilities is None:
        return batch
    with torch.no_grad():
        return replace(batch, reference=task.log_probabilities(batch))


def phases(job: Job, task: Task, feed: Feed, wire: Collective, control: Control) -> dict[str, float]:
    """Median seconds of real steps of all replicas, as this one spends them: micro (a micro-batch, with its data),
    exchange, update.
    """
    step = step_of(job, task, wire)
    step.seal()
    times = [_timed(job, task, feed, step, control)]
    more = 1 if slowest(wire, sum(times[0])) > LONG else STEPS - 1
    times += [_timed(job, task, feed, step, control) for _ in range(more)]
    micros = len(step.span) * job.recipe.batch.accumulate
    step.close()
    compute, exchange, update = (statistics.median(each) for each in zip(*times[1:], strict=True))
    return {"micro": compute / micros, "exchange": exchange, "update": update}


def _timed(job: Job, task: Task, feed: Feed, step: Step | Islands, control: Control) -> list[float]:
    """Seconds of computing, exchange and update of the next step."""
    n, recipe, began = step.number, job.recipe, time.perf_counter()
    plan = feed.step(n)
    control.phase(n + 1, Phase.BACKWARD)
    for lane in step.lanes:
        for micro in range(recipe.batch.accumulate):
            batch = referred(task, feed.micro_batch(plan, lane, micro))
            torch.manual_seed(mix(recipe.seed, n, lane, micro))
            step.backward(task.loss(batch) / task.terms(plan.targets, plan.pieces))
    place = device.of(task.module)
    marks = [began, _now(place)]
    control.phase(n + 1, Phase.EXCHANGE)
    step.reduce()
    marks.append(_now(place))
    control.phase(n + 1, Phase.UPDATE)
    step.propose(learning_rate(n, job.steps, recipe.optimizer))
    step.commit()
    return [after - before for before, after in pairwise([*marks, _now(place)])]


def _now(place: torch.device) -> float:
    device.finish(place)
    return time.perf_counter()


def slowest(wire: Collective, seconds: float) -> float:
    """The largest of all replicas' numbers."""
    mine = torch.tensor([seconds], dtype=torch.float64)
    others = [mine if rank == wire.rank else torch.empty_like(mine) for rank in range(wire.size)]
    all_gather(wire, Tag(0, Operation.PILOT), mine, others).wait()
    return max(float(other) for other in others)
