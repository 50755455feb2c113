"""What a pilot measures, on all replicas at once: they share processors, memory and links as they will in the run."""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from samestep.data.feed import MicroBatch
from samestep.data.order import mix
from samestep.model.optim import rule
from samestep.model.task import Task
from samestep.replica import device
from samestep.replica.board import Phase
from samestep.replica.carrier import carried
from samestep.replica.job import Job, copies
from samestep.replica.place import Control, only_wire
from samestep.replica.setup import corpora_of, feed_of, task_of
from samestep.replica.trial import frozen, phases, program, referred, slowest
from samestep.sync.flat import trainable
from samestep.wire import codec
from samestep.wire.codec import FORMATS
from samestep.wire.collective import Collective, Operation, Tag, everybody_ready
from samestep.wire.formats import LIMITS, bits

SIZES = tuple(1 << power for power in (10, 14, 17, 19, 21, 23, 25))  # bytes to each peer
LONG = 1.0  # seconds of an exchange after which no larger one is tried
ROUNDS = 4  # the first does not count
ELEMENTS = 1 << 21  # of the tensors that the optimizer and memory are timed on


def pilot(job: Job, control: Control) -> None:
    """Send what was measured; of each number the largest of any replica."""
    place = device.settle(job.recipe.compute.device, job.recipe.sync.strategy, control.place.local)
    wire, _ = carried(only_wire(control), place, job.recipe.run.transport == "auto", control.place.address, bool)
    bare = program(job)
    task, feed = task_of(job), feed_of(job)
    task.module.to(place)
    batch = referred(task, feed.micro_batch(feed.step(0), wire.rank % job.recipe.lanes, 0))
    forward, backward = compute(job, task, batch, wire, control)
    found = {
        "alone": alone(job, task, batch, wire, control),
        "forward": forward,
        "backward": backward,
        "update": slowest(wire, update_seconds(job, place)),
        "pass_": slowest(wire, pass_seconds(place)),
        "exchange": table(wire, place),
        "coding": {name: slowest(wire, coding_seconds(name, place)) for name in FORMATS if name != "float32"},
        "sizes": [parameter.numel() for parameter in trainable(task.module).values()],
        "frozen": frozen(task),
        "vocabulary": max(corpus.vocabulary for corpus in corpora_of(job)),
        "program": bare,
        "cores": len(os.sched_getaffinity(0)),
    }
    found["steps"] = phases(job, task, feed, wire, control)
    sync = job.recipe.sync
    found["sync"] = {"strategy": sync.strategy, "formats": [sync.wire, sync.told], "copies": copies(job.recipe)}
    if wire.rank == 0:
        control.send({"event": "measured", "replicas": wire.size} | found)
    control.phase(1, Phase.DONE)
    everybody_ready(wire, Tag(1, Operation.END))
    wire.close()


def compute(job: Job, task: Task, batch: MicroBatch, wire: Collective, control: Control) -> tuple[float, float]:
    """Seconds of forward and of backward of a micro-batch, while all replicas compute."""
    times = []
    for number in range(ROUNDS):
        control.phase(1, Phase.EXCHANGE)  # where a replica may wait, and is not taken for one that hangs
        everybody_ready(wire, Tag(number, Operation.BEGIN))
        control.phase(1, Phase.BACKWARD)
        times.append(once(job, task, batch, number))
    control.phase(1, Phase.EXCHANGE)
    forward, backward = (statistics.median(each[part] for each in times[1:]) for part in (0, 1))
    return slowest(wire, forward), slowest(wire, backward)


def alone(job: Job, task: Task, batch: MicroBatch, wire: Collective, control: Control) -> float:
    """Seconds of both on the first replica, while the others wait."""
    took = 0.0
    if wire.rank == 0:
        control.phase(1, Phase.BACKWARD)
        took = statistics.median([sum(once(job, task, batch, number)) for number in range(ROUNDS)][1:])
    control.phase(1, Phase.EXCHANGE)
    everybody_ready(wire, Tag(ROUNDS, Operation.BEGIN))
    return slowest(wire, took)


def once(job: Job, task: Task, batch: MicroBatch, number: int) -> tuple[float, float]:
    place = device.of(task.module)
    targets, pieces = int((batch.targets >= 0).sum()), 0 if batch.pieces is None else len(batch.pieces)
    torch.manual_seed(mix(job.recipe.seed, 0, 0, number))
    began = time.perf_counter()
    loss = task.loss(batch) / max(1, task.terms(targets, pieces))
    device.finish(place)
    middle = time.perf_counter()
    loss.backward()  # type: ignore[no-untyped-call]
    device.finish(place)
    ended = time.perf_counter()
    task.module.zero_grad()
    return middle - began, ended - middle


def update_seconds(job: Job, place: torch.device) -> float:
    """Of the optimizer, an element."""
    chosen = rule(job.recipe.optimizer)
    weights, gradient, *moments = (torch.zeros(ELEMENTS, device=place) for _ in range(2 + chosen.moments))
    kept = [[moment] for moment in moments]
    return timed(lambda: chosen.update([weights], [gradient], kept, [1], 1e-3, True), place) / ELEMENTS


def pass_seconds(place: torch.device) -> float:
    """Of adding one tensor to another, an element."""
    one, other = torch.zeros(ELEMENTS, device=place), torch.zeros(ELEMENTS, device=place)
    return timed(lambda: one.add_(other), place) / ELEMENTS


def coding_seconds(name: str, place: torch.device) -> float:
    """Of rounding one lane's sum to a format, and of undoing it, an element."""
    values = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(0)).to(place)
    total = torch.zeros_like(values)
    work = _whole(values, total, name) if name in LIMITS else _half(values, total)
    return timed(work, place) / ELEMENTS


def _half(values: Tensor, total: Tensor) -> Callable[[], None]:
    short = torch.zeros_like(values, dtype=torch.bfloat16)

    def work() -> None:
        codec.halve(values, short)
        total.copy_(short)

    return work


def _whole(values: Tensor, total: Tensor, name: str) -> Callable[[], None]:
    width = bits(LIMITS[name])
    out = torch.zeros(ELEMENTS * width // 8, dtype=torch.uint8, device=values.device)

    def work() -> None:
        scales = codec.scales(codec.codes(codec.peaks(values), LIMITS[name]))
        codec.round_off([values], scales, width, out)
        codec.add_up([(out, width)], scales, total)

    return work


def timed(work: Callable[[], object], place: torch.device) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        device.finish(place)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def table(wire: Collective, place: torch.device) -> list[tuple[int, float]]:
    """Seconds until every replica has what all others sent it, by the bytes that each sends to each."""
    found: list[tuple[int, float]] = []
    for index, size in enumerate(SIZES if wire.size > 1 else SIZES[:1]):
        rounds = ROUNDS if not found or found[-1][1] < LONG / ROUNDS else 2
        found.append((size, exchanged(wire, index, size, rounds, place)))
        if found[-1][1] > LONG:
            break
    return found


def exchanged(wire: Collective, index: int, size: int, rounds: int, place: torch.device) -> float:
    """The median; the first round does not count."""
    peers, like = [rank for rank in range(wire.size) if rank != wire.rank], torch.zeros(0, device=place)
    mine = wire.memory(size // 4, like)
    places = {rank: [torch.empty_like(mine)] for rank in peers}
    times = []
    for number in range(rounds):
        tag = Tag(number, Operation.PILOT, index)
        everybody_ready(wire, tag)
        began = time.perf_counter()
        wire.exchange(tag, {rank: [mine] for rank in peers}, places).wait()
        times.append(slowest(wire, time.perf_counter() - began))
    return statistics.median(times[1:])
