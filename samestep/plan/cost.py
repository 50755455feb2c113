"""What a run costs in time and money, with the stops that so many GPUs bring. Pure arithmetic: seconds, US dollars."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from samestep.errors import RecipeError
from samestep.plan.devices import named

PRICES = Path(__file__).with_name("prices.yaml")
HOUR = 3600.0
# Seconds of one GPU's work for each unplanned stop: 419 of 16,384 H100 in 54 days (Llama 3, arXiv 2407.21783, table 5).
BETWEEN = 16384 * 54 * 86400 / 419
RESTART = 600.0  # seconds until a stopped run is back in step: found, replaced, started, loaded
STORED = 2e9  # bytes a second in which a host writes its share of a checkpoint
NOTICED = 10.0  # seconds after which survivors of a dead replica go on, see recover/silence.py


@dataclass(frozen=True)
class Price:
    """dollars: for an hour of one GPU."""

    dollars: float
    source: str
    date: str


def prices(file: Path = PRICES) -> dict[str, Price]:
    """By device. Raises RecipeError for a file that is not there or is no price table."""
    try:
        table = yaml.safe_load(file.read_text())
        return {
            str(name): Price(float(row["dollars"]), str(row["source"]), str(row["date"])) for name, row in table.items()
        }
    except OSError as error:
        raise RecipeError(f"--prices {file} cannot be read: {error.strerror}; give a table like {PRICES}") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        form = "NAME: {dollars: 1.99, source: where, date: 2026-09-20}"
        raise RecipeError(f"--prices {file} is no price table; write lines of the form {form}") from None


def price_of(gpu: str, table: Mapping[str, Price]) -> Price | None:
    """Of the GPU that a driver calls so; None: it is not known, or has no price."""
    found = named(gpu)
    return table.get(found.name) if found else None


@dataclass(frozen=True)
class Stops:
    """expected: unplanned stops in the whole run. restart, survivors: share of the time that is training, where each
    stop goes back to a checkpoint, and where the others go on as samestep's do. every: seconds between checkpoints.
    """

    expected: float
    restart: float
    survivors: float
    every: float


def stops(gpus: int, hosts: int, training: float, step: float, state: float) -> Stops:
    """training: seconds of the run without stops. step: of one step. state: bytes of a checkpoint.

    Checkpoints come at the interval that loses least (Young 1974, Daly 2006): the square root of twice the time of
    one and the time between stops; half an interval is lost at each stop. Survivors lose the open step.
    """
    between = BETWEEN / gpus
    write = state / (STORED * hosts)
    every = max(math.sqrt(2 * write * between), step)
    lost = write / every + (every / 2 + RESTART) / between
    open_step = (NOTICED + 1.5 * step) / between
    return Stops(training / between, 1 / (1 + lost), 1 / (1 + open_step), every)
