"""Other programs that are told of a run while it goes on: a menu, each entry thin, imported only where it is asked for.

A sink is told numbers by name at a step, and is closed. None of them can end a run: one that fails is left out from
there on, and that is said.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samestep.errors import RecipeError
from samestep.events import Event

Numbers = dict[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sink:
    write: Callable[[int, Numbers], None]
    close: Callable[[], None]


def numbers(event: Event) -> Numbers:
    """What of an event is a number that belongs to its step, by name; nothing of most."""
    kind = event["event"]
    if kind == "step":
        found = {key: event.get(key) for key in ("loss", "gradient_norm", "learning_rate", "epoch", "seconds")}
        found["tokens_per_second"] = event["tokens"] / event["seconds"] if event["seconds"] else None
    elif kind == "evaluated":
        found = {f"held_out_{key}": event.get(key) for key in ("loss", "accuracy", "bits_per_byte")}
    elif kind == "spent" and event["rank"] is not None:
        found = {f"memory/replica_{event['rank']}": event["memory"]}
        found |= {f"{phase}/replica_{event['rank']}": seconds for phase, seconds in event["seconds"].items()}
    else:
        return {}
    return {key: float(value) for key, value in found.items() if value is not None}


def _tensorboard(run: Path, recipe: Mapping[str, Any]) -> Sink:
    """Event files in the folder tensorboard/ of the run, without torch or tensorflow."""
    from tensorboard.compat.proto.event_pb2 import Event as Record
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run / "tensorboard"))

    def write(step: int, found: Numbers) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in found.items()]
        writer.add_event(Record(step=step, wall_time=time.time(), summary=Summary(value=values)))

    return Sink(write, writer.close)


def _trackio(run: Path, recipe: Mapping[str, Any]) -> Sink:
    import trackio

    trackio.init(project="samestep", name=run.name, config=dict(recipe))
    return Sink(lambda step, found: trackio.log(found, step=step), trackio.finish)


def _wandb(run: Path, recipe: Mapping[str, Any]) -> Sink:
    """Online, offline or off as WANDB_MODE says."""
    import wandb

    settings = wandb.Settings(console="off")  # what is printed here is no part of the run
    made = wandb.init(project="samestep", name=run.name, dir=str(run), config=dict(recipe), settings=settings)
    return Sink(lambda step, found: made.log(found, step=step), made.finish)


def _mlflow(run: Path, recipe: Mapping[str, Any]) -> Sink:
    """Where MLFLOW_TRACKING_URI says."""
    import mlflow

    mlflow.set_experiment("samestep")
    made = mlflow.start_run(run_name=run.name)
    mlflow.log_dict(dict(recipe), "recipe.json")
    return Sink(
        lambda step, found: mlflow.log_metrics(found, step=step, run_id=made.info.run_id), lambda: mlflow.end_run()
    )


# By the name of the package, which is that of the extra too
SINKS = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}


class Sinks:
    """The sinks of one run, to be called with each of its events and closed at its end."""

    def __init__(self, names: Sequence[str], run: Path, recipe: Mapping[str, Any], say: Say) -> None:
        """Raises RecipeError for a sink that cannot begin."""
        self._say, self._step = say, 0
        self._open = {name: _made(name, run, recipe) for name in names}

    def __call__(self, event: Event) -> None:
        self._step = event["step"] if event["event"] == "step" else self._step
        if found := numbers(event):
            for name in list(self._open):
                self._attempt(name, lambda sink: sink.write(event.get("step", self._step), found))

    def close(self) -> None:
        for name in list(self._open):
            self._attempt(name, lambda sink: sink.close())

    def _attempt(self, name: str, do: Callable[[Sink], None]) -> None:
        """Whatever a foreign package raises, over a network or not, is no reason to end a run."""
        try:
            with redirect_stdout(sys.stderr):
                do(self._open[name])
        except Exception as error:
            del self._open[name]
            self._say(f"run.sinks {name}: {type(error).__name__}: {error}; it is left out from here on")


def refuse_missing(names: Sequence[str]) -> None:
    """Raises RecipeError for a sink whose package is not installed; to be called before a run has a folder."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(
                f"run.sinks asks for {name}, which is not installed; pip install 'samestep[{name}]', or remove it"
            )


def _made(name: str, run: Path, recipe: Mapping[str, Any]) -> Sink:
    """What it prints goes to stderr: with --json stdout is one object and nothing else."""
    try:
        with redirect_stdout(sys.stderr):
            return SINKS[name](run, recipe)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise RecipeError(f"run.sinks asks for {name}, which cannot begin: {what}; set it up, or remove it") from error
