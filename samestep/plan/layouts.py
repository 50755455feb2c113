"""The ways to lay a training out over GPUs: which fit, which is fastest, what would make one fit. Pure arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from samestep.plan import memory, steptime
from samestep.plan.devices import Device
from samestep.plan.facts import Facts
from samestep.plan.training import Training

NEAR = 0.03  # a layout that is slower by less than this share is taken where it is simpler
SPLITS = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4), (8, 8))  # tensor, pipeline; tensor stays within a host
STAGES = {0: "replicated", 1: "sharded optimizer", 2: "sharded gradients", 3: "full sharding"}
EIGHT = 2.0  # bytes a parameter of AdamW's moments in 8 bits (Dettmers et al., arXiv 2110.02861)
RANK = 16
OTHERWISE = ("LoRA", "8-bit")


@dataclass(frozen=True)
class Work:
    """rows: of a step, of all replicas. together: micro-batches that stay on one replica: those of a lane. free:
    whether a micro-batch may have any power of two of rows; else it has those of the recipe.
    """

    rows: int
    together: int = 1
    free: bool = False


@dataclass(frozen=True)
class Choice:
    training: Training
    seconds: float


def said(training: Training, wanted: Training) -> str:
    """A layout in words; of what it shares with `wanted` only how state is sharded."""
    words = [STAGES[training.stage] if training.replicas > 1 else "one replica"]
    if training.group and training.group < training.replicas:
        words = [f"sharded by {training.group}"]
    words += [f"TP {training.tensor}"] if training.tensor > 1 else []
    words += [f"PP {training.pipeline}"] if training.pipeline > 1 else []
    words += ["checkpointing"] if training.checkpointing == "full" else []
    words += ["8-bit state"] if training.moments < wanted.moments else []
    words += [f"LoRA {training.rank}"] if training.rank != wanted.rank else []
    if training.micro_batch != wanted.micro_batch:
        words.append(f"micro-batch {training.micro_batch}")
    return ", ".join(words)


def candidates(facts: Facts, wanted: Training, gpus: int) -> Iterator[Training]:
    """`wanted` on `gpus` GPUs, simplest first: as it is, with less kept for backward, more sharded, then split."""
    host = min(wanted.host, gpus)
    for tensor, pipeline in SPLITS:
        if gpus % (tensor * pipeline) or tensor > host or facts.heads % tensor or facts.layers % pipeline:
            continue
        split = replace(wanted, gpus=gpus, host=host, tensor=tensor, pipeline=pipeline)
        for stage in sorted({wanted.stage, 1, 3}) if split.replicas > 1 and pipeline == 1 else [wanted.stage]:
            for group in (0, host) if stage == 3 and split.replicas > host and tensor == 1 else (0,):
                for kept in dict.fromkeys((wanted.checkpointing, "full")):
                    yield replace(split, stage=stage, group=group, checkpointing=kept)


def spread(wanted: Training, work: Work) -> Training | None:
    """`wanted` with the micro-batches of the replica that has most of a step; None where some replica has none."""
    shares = work.rows / (wanted.micro_batch * work.together)
    if shares < wanted.replicas or shares % 1:
        return None
    return replace(wanted, accumulate=-(-int(shares) // wanted.replicas) * work.together)


def best(device: Device, facts: Facts, wanted: Training, gpus: int, work: Work) -> Choice | None:
    """The fastest layout that fits; of nearly equal ones the simplest. None: none fits."""
    found: list[Choice] = []
    for layout in candidates(facts, wanted, gpus):
        for fitting in fittings(device, facts, layout, work)[:2]:  # the largest may leave memory under pressure
            found.append(Choice(fitting, sum(steptime.step(device, facts, fitting).values())))
    if not found:
        return None
    least = min(choice.seconds for choice in found)
    return next(choice for choice in found if choice.seconds <= (1 + NEAR) * least)


def fittings(device: Device, facts: Facts, layout: Training, work: Work) -> list[Training]:
    """With each micro-batch that fits, largest first."""
    found = []
    for size in (32, 16, 8, 4, 2, 1) if work.free else (layout.micro_batch,):
        fitting = spread(replace(layout, micro_batch=size), work)
        if fitting is not None and _pipes(fitting) and memory.fits(device, facts, fitting):
            found.append(fitting)
    return found


def _pipes(training: Training) -> bool:
    """A pipeline with fewer micro-batches than stages would mostly wait."""
    return training.pipeline == 1 or training.accumulate >= 2 * training.pipeline


def remedies(device: Device, facts: Facts, wanted: Training, work: Work) -> dict[str, float | None]:
    """What alone would make `wanted` fit, cheapest first, with the seconds of a step that it then takes; what trains
    another model (OTHERWISE) comes after what does not, and what does not help, with None, last.
    """
    host = min(wanted.host, wanted.gpus)
    tensor = max(
        (t for t, p in SPLITS if p == 1 and t <= host and facts.heads % t == 0 and wanted.gpus % t == 0), default=1
    )
    changes = {
        "micro-batch 1": replace(wanted, micro_batch=1),
        "activation checkpointing": replace(wanted, checkpointing="full"),
        "sharded optimizer": replace(wanted, stage=max(1, wanted.stage)),
        "8-bit optimizer state": replace(wanted, moments=min(wanted.moments, EIGHT)),
        f"LoRA of rank {RANK}": replace(wanted, rank=wanted.rank or RANK, frozen=2),
        "full sharding": replace(wanted, stage=3),
        f"tensor parallel {tensor}": replace(wanted, tensor=tensor),
        "full sharding with checkpointing and micro-batch 1": replace(
            wanted, stage=3, checkpointing="full", micro_batch=1
        ),
    }
    found = {name: _seconds(device, facts, changed, work) for name, changed in changes.items() if changed != wanted}
    fitting = {name: seconds for name, seconds in found.items() if seconds is not None}
    ordered = sorted(fitting.items(), key=lambda item: (item[0].startswith(OTHERWISE), item[1]))
    return dict(ordered) | {n: None for n, s in found.items() if s is None}


def _seconds(device: Device, facts: Facts, changed: Training, work: Work) -> float | None:
    found = fittings(device, facts, changed, replace(work, free=False))
    return sum(steptime.step(device, facts, found[0]).values()) if found else None
