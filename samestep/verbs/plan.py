"""samestep plan: what a recipe, or a model, would take on GPUs that are not here. No torch, no network."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from samestep import units
from samestep.errors import RecipeError
from samestep.plan import cost, facts, proposal
from samestep.plan.cost import Price
from samestep.plan.devices import Device, device
from samestep.plan.facts import Facts
from samestep.plan.layouts import Work
from samestep.plan.proposal import ENOUGH, Marks, Row, Way, Wish
from samestep.plan.training import Training
from samestep.recipe.load import load
from samestep.recipe.schema import Recipe

GPUS = ("A100-80GB", "H100-SXM")  # where none is asked for
MOMENTS = {"adamw": 8.0, "sgd": 4.0}  # bytes a parameter
SHARDED = {"auto": 1, "sharded": 1, "mirrored": 1, "replicated": 0}  # sync.state as a stage of ZeRO
CONTEXT = 8192  # positions of a row where neither the command nor the model says fewer
# Tokens of a step by parameters (GPT-3, arXiv 2005.14165, table 2.1).
STEPS = ((1e9, 2**19), (4e9, 2**20), (4e10, 2**21), (float("inf"), 2**22))


@dataclass(frozen=True)
class Asked:
    """What the command line says. network: bytes a second of a host; None: the GPU's usual one."""

    gpus: Sequence[str] = ()
    replicas: str | None = None
    interconnect: str | None = None
    prices: Path | None = None
    tokens: float | None = None
    context: int | None = None
    batch: int | None = None


@dataclass(frozen=True)
class Plan:
    """assumed: what nobody said. prices: of the devices in the rows."""

    name: str
    parameters: int
    assumed: str
    tokens: float
    step_tokens: int
    rows: list[Row]
    marks: Marks
    prices: dict[str, Price]
    ways: list[Way]
    advice: str


def plan(target: Path, overrides: Sequence[str], asked: Asked) -> Plan:
    """target: a recipe, a Hugging Face config.json, or a model folder.

    Raises RecipeError for what cannot be read, an unknown GPU, and a length in epochs without --tokens.
    """
    if "here" in asked.gpus:
        raise RecipeError("--gpu here is planned from what a pilot has measured, beside no other; give it alone")
    wish, assumed = _wish(target, overrides, asked)
    table = cost.prices(asked.prices) if asked.prices else cost.prices()
    kinds = [device(name) for name in asked.gpus or GPUS]
    counts = replicas(asked.replicas, wish)
    rows = [
        row for kind in kinds for row in proposal.rows(kind, _linked(wish, kind, asked), counts, table.get(kind.name))
    ]
    marks = proposal.marks(rows)
    kind = kinds[(marks.recommended or 0) // len(counts)]
    return Plan(
        name=str(target),
        parameters=wish.facts.parameters,
        assumed=assumed,
        tokens=wish.tokens,
        step_tokens=wish.work.rows * wish.training.context,
        rows=rows,
        marks=marks,
        prices={one.name: table[one.name] for one in kinds if one.name in table},
        ways=proposal.ways(kind, _linked(wish, kind, asked), counts, table.get(kind.name)),
        advice=proposal.advice(wish, "a model of this shape"),
    )


def _wish(target: Path, overrides: Sequence[str], asked: Asked) -> tuple[Wish, str]:
    if target.is_dir():
        return _of_facts(facts.of_file(target / "config.json"), asked)
    if target.suffix == ".json":
        return _of_facts(facts.of_file(target), asked)
    recipe = load(target, overrides)
    recipe.refuse_shards("samestep plan")
    return of_recipe(recipe, facts.of_model(recipe.model, target.resolve().parent), asked), ""


def of_recipe(recipe: Recipe, shape: Facts, asked: Asked) -> Wish:
    """Products in the recipe's dtype; weights, gradients and moments in float32, moments sharded as sync.state says."""
    if asked.context or asked.batch:
        raise RecipeError(
            "--context and --batch are for a model; a recipe has data.context and batch, change them there"
        )
    training = Training(
        context=recipe.data.context,
        micro_batch=recipe.batch.micro_batch,
        product={"bfloat16": "bf16", "float32": "fp32"}[recipe.model.dtype],
        moments=MOMENTS[recipe.optimizer.kind],
        mixed=recipe.model.dtype == "bfloat16",
        stage=0 if recipe.sync.strategy == "fast" else SHARDED[recipe.sync.state],
        checkpointing=recipe.compute.checkpointing,
        rank=recipe.model.lora.rank if recipe.model.lora else 0,
        kernels="compiled" if recipe.compute.compile else "eager",
        loss="parts",
    )
    work = Work(recipe.lanes * recipe.batch.accumulate * recipe.batch.micro_batch, recipe.batch.accumulate)
    return Wish(shape, training, work, asked.tokens or length(recipe, work))


def length(recipe: Recipe, work: Work) -> float:
    """Tokens of the whole run. RecipeError for epochs: how many tokens they are only the data says."""
    if recipe.epochs:
        raise RecipeError(
            f"the recipe trains for {recipe.epochs} epochs, whose tokens plan does not count; give --tokens N "
            "(samestep check counts them)"
        )
    return float(recipe.tokens or (recipe.steps or 0) * work.rows * recipe.data.context)


def _of_facts(shape: Facts, asked: Asked) -> tuple[Wish, str]:
    """A model alone: trained in bfloat16 with float32 weights, compiled, with the batch and length that papers take."""
    context = asked.context or min(CONTEXT, shape.positions or CONTEXT)
    batch = asked.batch or next(tokens for most, tokens in STEPS if shape.parameters < most)
    if batch < context:
        raise RecipeError(f"--batch {batch} is less than one row of {context} tokens; raise it or lower --context")
    tokens = asked.tokens or ENOUGH * shape.parameters
    said = f"context {context:,}, {batch:,} tokens a step, bf16 products over float32 weights, torch.compile, AdamW"
    training = Training(context=context, micro_batch=1, mixed=True, stage=1, kernels="compiled")
    return Wish(shape, training, Work(batch // context, free=True), tokens), said


def replicas(text: str | None, wish: Wish) -> list[int]:
    """The numbers of GPUs of `1,8,64`; by default powers of two as far as a step has shares, or from 8 to 64."""
    if text is None:
        most = wish.work.rows // (wish.training.micro_batch * wish.work.together)
        return [count for count in (1, 2, 4, 8, 16, 32, 64) if (count >= 8 if wish.work.free else count <= most)]
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[1-9]\d*\s*", part) for part in parts):
        raise RecipeError(f"--replicas {text} is no list of numbers of GPUs; write 1,8,64")
    return sorted({int(part) for part in parts})


def _linked(wish: Wish, kind: Device, asked: Asked) -> Wish:
    """With the hosts of a kind of GPU and the network between them."""
    rate = bandwidth(asked.interconnect) if asked.interconnect else kind.network
    fields = {"host": kind.host, "network": rate, "flash": kind.flash and wish.training.product != "fp32"}
    return Wish(wish.facts, _with(wish.training, fields), wish.work, wish.tokens)


def _with(training: Training, fields: dict[str, Any]) -> Training:
    return Training(**{**asdict(training), **fields})


def bandwidth(text: str) -> float:
    """Bytes a second of a host: 400gbit, 25Gbps, 800 Gb/s, 10GB/s."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(b|B|bit|bps|Bps)(?:it)?(?:/s|ps)?\s*", text, re.IGNORECASE)
    if not found:
        raise RecipeError(f"--interconnect {text} is no rate; write what a host can send, such as 400gbit or 50GB/s")
    scale = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[found[2].lower()]
    return float(found[1]) * scale / (1 if found[3].startswith("B") else 8)


def as_dict(found: Plan) -> dict[str, Any]:
    return asdict(found)


# Words


def lines(found: Plan) -> list[str]:
    """The table for a terminal, what is behind its marks, and what would make fit what does not."""
    model = f"{found.name}: {units.count(found.parameters)} parameters, {units.count(found.tokens)} tokens"
    said = [f"{model} in steps of {units.count(found.step_tokens)}"]
    said += [f"assumed: {found.assumed}"] if found.assumed else []
    wide = max(len(one.layout) for one in found.rows)
    said += ["", _heading(wide)]
    said += [_line(one, _mark(found.marks, place), wide) for place, one in enumerate(found.rows)]
    said += (
        ["", f"recommended  {found.marks.reason}"] if found.marks.recommended is not None else ["", found.marks.reason]
    )
    if found.marks.recommended is not None:
        said += _behind(found.rows[found.marks.recommended])
    said += _helps(found.rows)
    return [*said, *_choices(found), *_notes(found)]


def _heading(wide: int) -> str:
    return (
        f"  {'GPU':<15}{'GPUs':>5}  {'layout':<{wide}} {'GiB each':>9}{'a step':>12}{'tokens/s':>11}{'MFU':>7}"
        f"{'scaling':>9}{'time':>13}{'cost':>13}{'stops':>7}{'goodput':>9}"
    )


def _line(one: Row, mark: str, wide: int) -> str:
    begins = f"{mark} {one.gpu:<15}{one.gpus:>5}  {one.layout:<{wide}} {one.needed / 2**30:>9.1f}"
    if not one.fits or one.stops is None:
        return f"{begins}  does not fit"
    return (
        f"{begins}{units.duration(sum(one.step.values())):>12}{units.count(one.tokens_per_second):>11}{one.mfu:>7.1%}"
        f"{one.efficiency:>9.1%}{units.duration(one.hours * 3600):>13}{_price(one):>13}{_few(one.stops.expected):>7}"
        f"{one.goodput:>9.1%}"
    )


def _few(number: float) -> str:
    return f"{number:.0f}" if number >= 9.95 else f"{number:.1f}" if number >= 0.05 else "0"


def _mark(marks: Marks, place: int) -> str:
    if place == marks.recommended:
        return "*"
    return "$" if place == marks.cheapest else "!" if place == marks.fastest else " "


def _behind(one: Row) -> list[str]:
    """Memory and time of one row by what they are for, largest first."""
    held = {**one.memory, "outside": one.needed - sum(one.memory.values())}
    said = [f"  memory     {_shares(held, 0.05 * 2**30, lambda size: f'{size / 2**30:.1f} GiB')}"]
    whole = sum(one.step.values())
    said.append(f"  a step     {_shares(one.step, 0.005 * whole, lambda seconds: units.share(seconds / whole))}")
    if one.stops is not None:
        stops = f"{_few(one.stops.expected)} expected in the run; training is {one.stops.restart:.1%} of the time"
        often = f"with a checkpoint each {units.duration(one.stops.every)} to go back to"
        ends = f", {one.stops.survivors:.1%} where survivors go on, as samestep's do" if one.own else ""
        said.append(f"  stops      {stops} {often}{ends}")
    return said


def _shares(parts: dict[str, float], least: float, shown: Callable[[float], str]) -> str:
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {shown(value)}" for name, value in ordered if value >= least)


def _helps(rows: Sequence[Row]) -> Iterator[str]:
    """What would make fit what does not as it is asked for; rows of one GPU that the same would help, together."""
    for (gpu, names), several in groupby((one for one in rows if one.remedies), lambda one: (one.gpu, _names(one))):
        same = list(several)
        first, last = same[0], same[-1]
        counts = f"{first.gpus}" if len(same) == 1 else f"{first.gpus} to {last.gpus}"
        yield f"{counts} {gpu}: as asked a GPU needs {first.asked / 2**30:.0f} GiB; " + (
            f"what alone makes it fit, and a step on {first.gpus}:" if names else "no single change makes it fit"
        )
        yield from (f"  {units.duration(first.remedies[name] or 0.0):>9}  {name}" for name in names)


def _names(one: Row) -> tuple[str, ...]:
    return tuple(name for name, seconds in one.remedies.items() if seconds is not None)


def _choices(found: Plan) -> list[str]:
    """Tune or train, side by side."""
    said = ["", found.advice]
    for way in found.ways:
        one = way.row
        begins = f"  {way.name:<19}{units.count(way.tokens):>9} tokens"
        place = f"{one.gpus:>5} {one.gpu}, {one.layout}"
        spent = f"{units.duration(one.hours * 3600):>13}{_price(one):>13}" if one.fits else f"{'does not fit':>26}"
        said.append(f"{begins}{one.needed / 2**30:>8.1f} GiB each{spent} {place}")
    return said


def _price(one: Row) -> str:
    if one.dollars is None:
        return "?"
    return f"${one.dollars:,.0f}" if one.dollars >= 100 else f"${one.dollars:,.2f}"


def _notes(found: Plan) -> list[str]:
    priced = [f"{name} ${one.dollars:.2f} ({one.source}, {one.date})" for name, one in found.prices.items()]
    sharing = any(one.fits and not one.own for one in found.rows)
    said = ["", "* recommended  $ cheapest  ! fastest; scaling: speed a GPU, of that on the few that are used best"]
    said.append("MFU: 6 FLOPs a parameter in a product and 12 a layer, width and position, of the dense peak (PaLM)")
    said += [f"an hour of a GPU: {', '.join(priced)}"] if priced else ["no prices for these GPUs; give --prices FILE"]
    if sharing:
        said.append("samestep shards the optimizer; full sharding, TP and PP are other trainers'")
    return said
