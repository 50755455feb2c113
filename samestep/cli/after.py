"""What is asked of a run that there is. Heavy imports wait until a command is chosen."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from samestep.cli.options import Debug, Json, show


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, also of a run that goes on.")],
    to: Annotated[Path | None, typer.Option(help="The file to write; default: report.html in the run folder.")] = None,
    against: Annotated[Path | None, typer.Option(metavar="RUN", help="Another run to compare with.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Dollars for an hour of one replica.")] = None,
    prices: Annotated[Path | None, typer.Option(help="Your own price table, for GPUs.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain a run in one HTML file, with a .md file beside it for pull requests."""
    from samestep.verbs import report as verb

    written = verb.report(run, to, against, price, prices)
    show(as_json, verb.as_dict(written), verb.lines(written))


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove from a run's journal and recipe which rows its steps have read."""
    from samestep.verbs import audit as verb

    found = verb.audit(run, lambda message: print(message, file=sys.stderr))
    show(as_json, verb.as_dict(found), verb.lines(found))
    raise typer.Exit(0 if verb.clean(found) else 5)


def digest(
    target: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run folder or a model folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the SHA-256 of a model's parameters."""
    from samestep.verbs import digest as verb

    found = verb.digest(target)
    show(as_json, {"digest": found}, [found])


def compare(
    left: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    right: Annotated[Path, typer.Argument(metavar="RUN", help="Another run folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say whether two runs gave the same model, and where they part if not."""
    from samestep.verbs import compare as verb

    comparison = verb.compare(left, right)
    show(as_json, verb.as_dict(comparison), verb.lines(comparison))
    raise typer.Exit(0 if comparison.same else 5)


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
    show(as_json, asdict(exported), verb.lines(exported))
