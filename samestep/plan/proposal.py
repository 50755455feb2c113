"""A plan: for each GPU and number of them the layout, memory, step, speed, time and cost, and which to take. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from samestep import units
from samestep.plan import cost, exchange, layouts, memory, steptime
from samestep.plan.cost import Price, Stops
from samestep.plan.devices import Device
from samestep.plan.facts import Facts
from samestep.plan.layouts import Work
from samestep.plan.training import Training

FEW = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEARER = 0.15  # share over the cheapest that is paid for the time that more GPUs save
ALL = 14.0  # bytes a parameter of a checkpoint: float32 weights, two moments, and its part of the rest


@dataclass(frozen=True)
class Wish:
    """What is asked for. tokens: of the whole run."""

    facts: Facts
    training: Training
    work: Work
    tokens: float


@dataclass(frozen=True)
class Row:
    """One GPU and number of them. needed: bytes a GPU must have; asked: as wished for; memory: needed by kind. step:
    seconds by kind. goodput: share of the time that is training and no stop. efficiency: speed a GPU, of that on
    the few GPUs (a power of two) that are best used. hours and dollars: of the whole run, stops and all. own: whether
    samestep itself trains so. Of a row that does not fit step is empty.
    """

    gpu: str
    gpus: int
    layout: str
    fits: bool
    needed: float
    asked: float
    memory: dict[str, float]
    remedies: dict[str, float | None]
    training: Training
    step: dict[str, float]
    tokens_per_second: float = 0.0
    mfu: float = 0.0
    efficiency: float = 0.0
    goodput: float = 0.0
    hours: float = 0.0
    dollars: float | None = None
    stops: Stops | None = None
    own: bool = True


@dataclass(frozen=True)
class Marks:
    """Places of rows, or None, and the reason for the recommended one."""

    cheapest: int | None
    fastest: int | None
    recommended: int | None
    reason: str


def rows(device: Device, wish: Wish, counts: Sequence[int], price: Price | None) -> list[Row]:
    """One for each number of GPUs."""
    least = alone(device, wish)
    return [row(device, wish, gpus, price, least) for gpus in counts]


def alone(device: Device, wish: Wish) -> float:
    """The most tokens a second and GPU, from the fewest GPUs that hold it on, as long as more of them gain; NaN where
    not even the last of FEW holds it.
    """
    most = math.nan
    for gpus in FEW:
        chosen = layouts.best(device, wish.facts, wish.training, gpus, wish.work)
        speed = _speed(wish, chosen.seconds) / gpus if chosen else math.nan
        if speed < most:
            break
        most = speed if chosen else most
    return most


def row(device: Device, wish: Wish, gpus: int, price: Price | None, least: float) -> Row:
    """The fastest layout of `gpus` that fits, or what would be needed and what would help. least: see `alone`."""
    asked = _asked(device, wish, gpus)
    helps = {} if memory.fits(device, wish.facts, asked) else layouts.remedies(device, wish.facts, asked, wish.work)
    chosen = layouts.best(device, wish.facts, wish.training, gpus, wish.work)
    layout = chosen.training if chosen else asked
    bare = Row(
        gpu=device.name,
        gpus=gpus,
        layout=layouts.said(layout, wish.training),
        fits=chosen is not None,
        needed=memory.needed(wish.facts, layout),
        asked=memory.needed(wish.facts, asked),
        memory=memory.peak(wish.facts, layout),
        remedies=helps,
        training=layout,
        step=steptime.step(device, wish.facts, layout) if chosen else {},
        own=layout.stage < 2 and layout.tensor == layout.pipeline == 1,
    )
    return bare if chosen is None else _timed(bare, device, wish, price, least)


def _timed(bare: Row, device: Device, wish: Wish, price: Price | None, least: float) -> Row:
    """With speed, time and cost."""
    training, step = bare.training, sum(bare.step.values())
    speed = _speed(wish, step)
    state = ALL * memory.trained(wish.facts, training)
    halts = cost.stops(bare.gpus, exchange.hosts(training), wish.tokens / speed, step, state)
    goodput = halts.survivors if bare.own else halts.restart
    hours = wish.tokens / speed / goodput / cost.HOUR
    return replace(
        bare,
        tokens_per_second=speed,
        mfu=steptime.utilisation(device, wish.facts, training, speed),
        efficiency=speed / bare.gpus / least,
        goodput=goodput,
        hours=hours,
        dollars=None if price is None else hours * bare.gpus * price.dollars,
        stops=halts,
    )


def _speed(wish: Wish, seconds: float) -> float:
    return wish.work.rows * wish.training.context / seconds


def _asked(device: Device, wish: Wish, gpus: int) -> Training:
    """As it is wished for, with a micro-batch of one row where it may be chosen."""
    asked = replace(wish.training, gpus=gpus, micro_batch=1 if wish.work.free else wish.training.micro_batch)
    return layouts.spread(asked, wish.work) or asked


def marks(rows: Sequence[Row]) -> Marks:
    """cheapest: least money, or GPU hours where a price is missing. recommended: the fastest of those that cost at most
    DEARER more than the cheapest.
    """
    places = [place for place, one in enumerate(rows) if one.fits]
    if not places:
        return Marks(None, None, None, "nothing fits; the remedies say what would")
    priced = [place for place in places if rows[place].dollars is not None] or places
    costs = {place: _cost(rows[place]) for place in priced}
    cheapest = min(priced, key=lambda place: (costs[place], rows[place].hours))
    fastest = min(places, key=lambda place: rows[place].hours)
    near = [place for place in priced if costs[place] <= (1 + DEARER) * costs[cheapest]]
    taken = min(near, key=lambda place: rows[place].hours)
    return Marks(cheapest, fastest, taken, _reason(rows, costs, cheapest, fastest, taken))


def _cost(one: Row) -> float:
    return one.hours * one.gpus if one.dollars is None else one.dollars


def _reason(rows: Sequence[Row], costs: Mapping[int, float], cheapest: int, fastest: int, taken: int) -> str:
    one, least = rows[taken], rows[cheapest]
    said = f"{one.gpus} {one.gpu}: "
    if taken == cheapest:
        said += "the cheapest, and none that costs up to 15 % more is faster"
    else:
        more = costs[taken] / costs[cheapest] - 1
        said += f"{least.hours / one.hours:.1f} times as fast as the cheapest for {more:.0%} more"
    if fastest != taken:
        sooner = one.hours / rows[fastest].hours
        said += f"; {rows[fastest].gpus} {rows[fastest].gpu} would be {sooner:.1f} times as fast"
        if fastest in costs:
            said += f" for {costs[fastest] / costs[taken]:.1f} times the cost"
    return said


ENOUGH = 20.0  # tokens a parameter that training from scratch takes (Hoffmann et al., arXiv 2203.15556)


@dataclass(frozen=True)
class Way:
    """One way to a model: full, LoRA or from scratch, on the number of GPUs that is cheapest for it."""

    name: str
    tokens: float
    row: Row


def ways(device: Device, wish: Wish, counts: Sequence[int], price: Price | None) -> list[Way]:
    """The same data used to tune all weights or adapters, and what a model of this shape would take from nothing."""
    rank = wish.training.rank or layouts.RANK
    whole = replace(wish, training=replace(wish.training, rank=0))
    wishes = {
        "tune all weights": whole,
        f"tune LoRA {rank}": replace(wish, training=replace(wish.training, rank=rank, frozen=2)),
        "train from scratch": replace(whole, tokens=max(wish.tokens, ENOUGH * wish.facts.parameters)),
    }
    found = {name: rows(device, one, counts, price) for name, one in wishes.items()}
    taken = {name: marks(several).cheapest or 0 for name, several in found.items()}
    return [Way(name, one.tokens, found[name][taken[name]]) for name, one in wishes.items()]


def advice(wish: Wish, name: str) -> str:
    """Whether so much data can make a model from nothing, and what it would take. name: of what is planned."""
    share = wish.tokens / (ENOUGH * wish.facts.parameters)
    data = f"{units.count(wish.tokens)} tokens are {units.share(share)} of the {ENOUGH:.0f} a parameter"
    if share >= 1:
        return f"train: {data} that {name} needs from scratch (arXiv 2203.15556)"
    return f"tune: {data} that {name} would need from scratch (arXiv 2203.15556)"
