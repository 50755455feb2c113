"""One replica of torch DDP, of DDP with PowerSGD, or of training without synchronisation; network.py starts it.

    network_torch.py ddp|powersgd|alone LEAST TARGET

Model, samples, their order, learning rates and held-out rows are samestep's own, of the job that the engine hands down:
replica r computes lane r. `alone` sends nothing, each replica makes every update by itself: the bound of all others.
A run with evaluations ends at the first one at step LEAST or later whose held-out loss is at most TARGET.
"""

import os
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from ddp import optimizer_of
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd
from torch.nn.parallel import DistributedDataParallel

from samestep.data.feed import MicroBatch
from samestep.evaluate.heldout import evaluate
from samestep.model.schedule import learning_rate
from samestep.replica.job import Job, parse
from samestep.replica.place import Control, connect, only_wire
from samestep.replica.setup import feed_of, fixed_of, task_of
from samestep.wire.collective import Collective, Operation, Tag, everybody_ready

RANK = 2  # of PowerSGD's matrices
WHOLE = 2  # first steps that PowerSGD sends in full; torch rebuilds its buckets in them, and allows no fewer

# MB. The hook's second all-reduce starts when its first is done, so those of two buckets come in another order on each
# replica; gloo takes them for one another and aborts.
ONE_BUCKET = 1000


def main() -> None:
    control = connect(os.environ)
    try:
        torch.set_num_threads(1)
        job, wire = parse(control.place.work), only_wire(control)
        train(job, control, wire, sys.argv[1], least=int(sys.argv[2]), target=float(sys.argv[3]))
        everybody_ready(wire, Tag(job.stop, Operation.END))
        if dist.is_initialized():
            dist.destroy_process_group()  # left to the end of the process, its threads may abort it
        wire.close()
    except Exception as error:
        control.failed(error)
        raise


def train(job: Job, control: Control, wire: Collective, mode: str, least: int, target: float) -> None:
    task, feed, held_out = task_of(job), feed_of(job), fixed_of(job, "held_out")
    step, every = step_of(task.module, mode, control, wire), job.recipe.evaluate.every

    def reached(number: int) -> bool:
        if not every or number % every:
            return False
        loss = evaluate(task, held_out, wire, number).loss
        if wire.rank == 0:
            control.send({"event": "evaluated", "step": number, "loss": loss})
        return number >= least and loss <= target

    number = 0
    everybody_ready(wire, Tag(0, Operation.BEGIN))
    while not reached(number) and number < job.stop:
        began = time.perf_counter()
        plan = feed.step(number)
        batch = feed.micro_batch(plan, wire.rank, 0)
        loss = step(batch, plan.targets / wire.size, learning_rate(number, job.steps, job.recipe.optimizer))
        number += 1
        seconds = time.perf_counter() - began
        control.send({"event": "step", "step": number, "seconds": round(seconds, 6), "loss": loss})


def step_of(module: torch.nn.Module, mode: str, control: Control, wire: Collective) -> Callable[..., float]:
    """A function of (batch, targets, rate). targets: what the batch's loss is divided by, before replicas' mean."""
    forward = module if mode == "alone" else parallel(module, mode, control, wire)
    optimizer = optimizer_of(module)

    def step(batch: MicroBatch, targets: float, rate: float) -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(batch.tokens, batch.targets, batch.positions) / targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        return loss.item()

    return step


def parallel(module: torch.nn.Module, mode: str, control: Control, wire: Collective) -> DistributedDataParallel:
    """The replicas find each other in the engine's file; between hosts gloo calls by the link, else by the loopback."""
    if control.place.address:
        os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    store = dist.FileStore(f"/proc/self/fd/{control.place.meeting}", -1)
    dist.init_process_group("gloo", store=store, rank=wire.rank, world_size=wire.size)
    found = DistributedDataParallel(module, bucket_cap_mb=ONE_BUCKET if mode == "powersgd" else None)
    if mode == "powersgd":
        terms = {"matrix_approximation_rank": RANK, "start_powerSGD_iter": WHOLE, "orthogonalization_epsilon": 1e-8}
        found.register_comm_hook(powersgd.PowerSGDState(None, **terms), powersgd.powerSGD_hook)
    return found


if __name__ == "__main__":
    main()
