"""What trains. Heavy imports wait until a command is chosen."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from samestep.cli.options import Address, Debug, Engine, Json, Metrics, Overrides, RecipeFile, show, with_replicas


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    replicas: Annotated[int | None, typer.Option(help="Number of replicas (run.replicas).")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME-N.")] = None,
    engine: Engine = "local",
    address: Address = None,
    go_on: Annotated[bool, typer.Option("--resume", help="Go on with what --run holds of this recipe.")] = False,
    metrics: Metrics = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model as a recipe says."""
    from rich.console import Console

    from samestep.verbs import train as verb

    changes, console = with_replicas(overrides, replicas), Console(stderr=True)
    if engine == verb.LAUNCHED:
        from samestep.verbs import launched

        verb.refuse_address(engine, address)
        summary = launched.train(recipe, changes, run, console, metrics)
    elif go_on:
        from samestep.verbs import resume

        summary = resume.either(recipe, changes, run, engine, console, metrics, address)
    else:
        summary = verb.train(recipe, changes, run, engine, console, metrics, address)
    if summary is not None:  # of all processes of a launch one has it
        show(as_json, asdict(summary), verb.lines(summary))


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that was stopped or killed.")],
    overrides: Overrides = None,
    replicas: Annotated[int | None, typer.Option(help="Number of replicas; any will do.")] = None,
    engine: Engine = "local",
    address: Address = None,
    metrics: Metrics = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Go on with a run that was stopped or killed, to the model that it would have had."""
    from rich.console import Console

    from samestep.verbs import resume as verb
    from samestep.verbs.train import LAUNCHED, lines, refuse_address

    changes, console = with_replicas(overrides, replicas), Console(stderr=True)
    if engine == LAUNCHED:
        from samestep.verbs import launched

        refuse_address(engine, address)
        summary = launched.resume(run, changes, console, metrics)
    else:
        summary = verb.resume(run, changes, engine, console, metrics, address)
    if summary is not None:
        show(as_json, asdict(summary), lines(summary))


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
    show(as_json, asdict(verdict), verb.lines(verdict))
    raise typer.Exit(0 if verdict.same else 5)


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

    changes, seeds = with_replicas(overrides, replicas), range(seed, seed + runs)
    verdict = verb.chaos(recipe, changes, seeds, faults, Console(stderr=True))
    show(as_json, asdict(verdict), verb.lines(verdict))
    raise typer.Exit(0 if verdict.same else 5)


def slurm(
    words: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipes, a job array where several.")
    ],
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    replicas_per_node: Annotated[int, typer.Option(min=1, help="Replicas on each node.")] = 1,
    time: Annotated[str | None, typer.Option(help="Time limit of a life of the job, as sbatch has it.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run, which the nodes share.")] = None,
    engine: Annotated[str, typer.Option(help="env: the job's tasks; ray: a cluster in the job, elastic.")] = "env",
    sbatch: Annotated[list[str] | None, typer.Option(help="A further option of sbatch: --sbatch=--account=x")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, submit nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train under Slurm: write a batch script and submit it."""
    from samestep.verbs import slurm as verb

    done = verb.slurm(words, nodes, replicas_per_node, time, partition, run, sbatch or [], dry_run, engine)
    show(as_json, asdict(done), verb.lines(done))


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
    printed = verb.kubernetes(recipe, with_replicas(overrides, replicas), asked)
    show(as_json, verb.as_dict(printed), verb.lines(printed))
