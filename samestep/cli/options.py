"""What several commands take, and how they show what they found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change: optimizer.clip=0.5")
]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="The Ray cluster to use; default: a private one.")
]
Engine = Annotated[str, typer.Option(help="Who starts the replicas: local; ray; env: torchrun, srun or a JobSet.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Metrics = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Serve Prometheus metrics at this port of 127.0.0.1; 0: a free one."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def with_replicas(overrides: list[str] | None, replicas: int | None) -> list[str]:
    return (overrides or []) + ([] if replicas is None else [f"run.replicas={replicas}"])


def show(as_json: bool, fields: dict[str, Any], lines: Sequence[str]) -> None:
    print(json.dumps(fields, default=str) if as_json else "\n".join(lines))
