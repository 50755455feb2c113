"""A plan for this machine, which a pilot has measured: step time, memory and bytes sent, by replicas. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from samestep.plan import cores, resident, timing, traffic
from samestep.plan.cores import Trial
from samestep.plan.facts import Facts
from samestep.plan.kept import Micro
from samestep.plan.resident import Held, Program, Resident
from samestep.plan.timing import Bytes, Measured, Work
from samestep.plan.traffic import Division
from samestep.recipe.schema import Recipe
from samestep.sync import tree
from samestep.sync.legs import Legs
from samestep.sync.slices import layout
from samestep.wire.formats import Formats

MOMENTS = {"adamw": 2, "sgd": 1}  # tensors a weight
COPIES = {"sharded": 1, "mirrored": 2}  # replicas that hold a moment; replicated: all

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """So many replicas. step: seconds by part. efficiency: speed of a replica, of that of one alone. memory: of the
    replica that needs most, as its process shows it; parts: by kind. machine: bytes of all, where each page counts
    once. sent: bytes of a step by replica; of diloco the mean over the run. state: see sync.state.
    """

    replicas: int
    step: dict[str, float]
    tokens_per_second: float
    efficiency: float
    memory: float
    parts: dict[str, float]
    machine: float
    sent: list[float]
    state: str

    @property
    def seconds(self) -> float:
        return sum(self.step.values())


def rows(recipe: Recipe, facts: Facts, measured: Fields, steps: int, states: Mapping[int, str]) -> list[Row]:
    """measured: by a pilot of this recipe's micro-batch. states: by number of replicas, who holds the moments."""
    found = [_row(recipe, facts, measured, steps, count, state) for count, state in states.items()]
    alone = _row(recipe, facts, measured, steps, 1, "sharded").tokens_per_second
    return [replace(row, efficiency=row.tokens_per_second / row.replicas / alone) for row in found]


def _row(recipe: Recipe, facts: Facts, measured: Fields, steps: int, replicas: int, state: str) -> Row:
    copies, frozen = replicas if state == "replicated" else COPIES[state], measured["frozen"]
    held = held_of(recipe, measured["sizes"], copies, steps, frozen["all"], frozen["mapped"])
    program = Program(**measured["program"])
    micro = micro_of(recipe, measured["frozen"]["wide"])
    each = [resident.replica(program, facts, micro, held, replicas, rank) for rank in range(replicas)]
    most = max(each, key=lambda one: one.bytes)
    step = _step(recipe, measured, held, replicas)
    return Row(
        replicas=replicas,
        step=step,
        tokens_per_second=recipe.rows_per_step * recipe.data.context / sum(step.values()),
        efficiency=1.0,
        memory=most.bytes,
        parts=_by_kind(most),
        machine=resident.machine(program, facts, micro, held, replicas),
        sent=_sent(recipe, held, steps, replicas),
        state=state,
    )


def _by_kind(most: Resident) -> dict[str, float]:
    return most.own | most.mapped | ({"of the others": most.seen} if most.seen else {})


def micro_of(recipe: Recipe, wide: bool = True) -> Micro:
    """wide: whether matrices are float32, as all that are trained are."""
    adapters = recipe.model.lora
    return Micro(
        rows=recipe.batch.micro_batch,
        context=recipe.data.context,
        width=2 if recipe.model.dtype == "bfloat16" else 4,
        apart=recipe.objective.kind != "causal",
        rank=adapters.rank if adapters else 0,
        dropped=bool(adapters and adapters.dropout),
        wide=wide or not adapters,
        again=recipe.compute.checkpointing == "full",
    )


def held_of(
    recipe: Recipe, sizes: Sequence[int], copies: int, steps: int = 0, frozen: float = 0.0, mapped: float = 0.0
) -> Held:
    """sizes: elements of each parameter that is trained. copies: replicas that hold a moment, where there can be
    several. steps: of the run. frozen, mapped: bytes of what is not trained.
    """
    islands = recipe.sync.diloco.islands if recipe.sync.strategy == "diloco" else 0
    return Held(
        layout=layout(sizes, islands or recipe.lanes),
        lanes=recipe.lanes,
        accumulate=recipe.batch.accumulate,
        moments=MOMENTS[recipe.optimizer.kind],
        copies=1 if recipe.sync.alone else copies,
        strategy=recipe.sync.strategy,
        formats=Formats(recipe.sync.wire, recipe.sync.told),
        islands=islands,
        saves=0 < recipe.recover.checkpoint_every <= steps,
        frozen=frozen,
        mapped=mapped,
    )


def trial_of(recipe: Recipe, measured: Fields) -> Trial:
    together = measured["steps"]["micro"]
    return Trial(
        replicas=measured["replicas"],
        copies=measured["sync"]["copies"],
        cores=measured["cores"],
        threads=recipe.compute.threads,
        alone=together * measured["alone"] / (measured["forward"] + measured["backward"]),
        together=together,
        exchange=measured["steps"]["exchange"],
        update=measured["steps"]["update"],
        rate=measured["update"],
        pass_=measured["pass_"],
    )


def _step(recipe: Recipe, measured: Fields, held: Held, replicas: int) -> dict[str, float]:
    trial = trial_of(recipe, measured)
    if held.strategy == measured["sync"]["strategy"] != "diloco" and held.formats == Formats(
        *measured["sync"]["formats"]
    ):
        return cores.step(trial, held, replicas)
    crowd = max(1.0, replicas / trial.places)
    rest = {name: crowd * seconds for name, seconds in _otherwise(recipe, measured, held, replicas).items()}
    return {"compute": cores.computing(trial, held, replicas)} | rest


def _otherwise(recipe: Recipe, measured: Fields, held: Held, replicas: int) -> dict[str, float]:
    """What a step takes beside computing, where the pilot has made none of its kind: from single operations."""
    fields = ("forward", "backward", "update", "pass_", "coding", "exchange")
    known = Measured(replicas, **{name: measured[name] for name in fields})
    whole, terms, wire = held.layout.total, recipe.sync.diloco, held.formats
    units = max(len(span) for span in tree.spans(held.units, replicas))
    each = Bytes(4 * whole // replicas, 4 * whole // replicas)
    work = Work(whole, held.layout.buckets, units * recipe.lanes // held.units, recipe.batch.accumulate)
    if held.islands:
        parts = timing.islands(known, work, each, wire.sums, wire.weights, terms.every, terms.overlap, units)
    else:
        parts = timing.exact(known, work, each, wire.sums, wire.weights)
    return {name: seconds for name, seconds in parts.items() if name not in ("forward", "backward")}


def _sent(recipe: Recipe, held: Held, steps: int, replicas: int) -> list[float]:
    division = Division(held.layout, held.units, replicas, held.copies, held.formats)
    if held.strategy == "fast":
        return [traffic.fast(division)] * replicas if replicas > 1 else [0]
    if held.islands:
        return [mean_of_legs(recipe, division, steps, rank) for rank in range(replicas)]
    return [traffic.step(division, rank) for rank in range(replicas)]


def mean_of_legs(recipe: Recipe, division: Division, steps: int, rank: int) -> float:
    """Bytes of a step of a run of so many."""
    terms = recipe.sync.diloco
    legs, number, sent = Legs(terms.every, terms.fragments, terms.overlap, steps, terms.together), 0, 0
    while number < steps:
        leg = traffic.leg(division, rank, legs, terms.fragments, recipe.lanes, number)
        number, sent = number + len(leg), sent + sum(leg)
    return sent / steps
