"""Fits the constants of samestep/plan/constants.yaml to published runs, and says how that carries to other sources.

    scripts/fit_planner RUNS.csv [--write]

The constants are those that no data sheet gives: shares of rates and overheads, the same for every model, device and
source. What is made small is the sum over runs of |log(predicted / published)| of their tokens/s, by least squares that
are weighted again in each round (Gauss-Newton, Holland and Welsch 1977); a run that is off by more than CUT is thought
mistaken and does not pull. A source weighs as the square root of its runs, a constant is drawn to its usual value, and
stays within what is physically thinkable. Held out: fitted again without one source at a time and judged on it alone;
--write keeps these for benchmarks/planner.py too.
"""

import argparse
import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from samestep.plan import constants, steptime
from samestep.plan.constants import Constants
from samestep.plan.published import Run, runs

Array = np.ndarray[Any, np.dtype[np.float64]]

HELD_OUT = Path(__file__).with_name("results") / "planner_held_out.json"

CUT = 0.5  # of an error that counts
FLOOR = 0.03  # errors below it are as good as none
ROUNDS = 4
STEP = 0.02  # of a constant's logarithm, of which slopes are taken
DRAWN = 0.5  # by how much, in logarithms, a constant may well differ from its usual value
# unit, usual value, lowest and highest that are thinkable, what says so
BOUNDS = {
    "sustained": ("share", 0.88, 0.6, 1.0, "clocks under a training step's power"),
    "streamed": ("share", 0.8, 0.6, 0.95, "STREAM reaches 0.9 of the data sheet's bandwidth"),
    "passes": ("factor", 1.0, 0.5, 2.0, "the count of passes in kernels.py"),
    "flash": ("share", 0.5, 0.3, 0.9, "FlashAttention-1 and -2 (arXiv 2205.14135, 2307.08691), of the matrix ceiling"),
    "heads": (
        "power",
        0.15,
        0.02,
        1.0,
        "heads of 64 are slower: FlashAttention-2 by 0.3, -1 by 0 (arXiv 2307.08691, figure 4)",
    ),
    "launch": ("s", 6e-6, 3e-6, 15e-6, "an eager operation of PyTorch"),
    "linked": ("share", 0.75, 0.5, 0.9, "bus bandwidth of nccl-tests"),
    "routed": ("share", 0.75, 0.4, 0.95, "bus bandwidth of nccl-tests between hosts"),
    "hidden": ("share", 0.8, 0.3, 1.0, "exchanges start once a bucket is full"),
    "contended": ("share", 0.15, 0.02, 0.5, "exchanges take multiprocessors and memory bandwidth"),
    "step": ("s", 0.015, 0.002, 0.06, "data, logging and the optimizer's launches"),
    "jitter": ("share", 0.004, 0.0005, 0.02, "of a step for each doubling of the hosts"),
    "pressed": ("share", 0.1, 0.01, 0.4, "torch's allocator when memory is full"),
    "graph": ("factor", 1.5, 0.8, 3.0, "passes of TensorFlow's graph executor, of eager ones"),
    "ramp": ("elements", 128, 32, 512, "the inner dimension at which a product reaches half of its rate"),
    "loss": ("factor", 1.0, 0.5, 2.5, "the count of passes over logits in kernels.py"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--write", action="store_true", help="write constants.yaml")
    arguments = parser.parse_args()
    with arguments.runs.open(newline="") as file:
        usable = [one for one in runs(list(csv.DictReader(file))) if isinstance(one, Run) and one.speed]
    usual = Constants(**{name: bound[1] for name, bound in BOUNDS.items()})
    fitted = fit(usable, usual)
    print(json.dumps(asdict(fitted), indent=1))
    left_out = held_out(usable, fitted)
    print(json.dumps({source: found["errors"] for source, found in left_out.items()}, indent=1))
    if arguments.write:
        constants.FILE.write_text(text(fitted, arguments.runs.name, len(usable)))
        HELD_OUT.write_text(json.dumps(left_out, indent=1) + "\n")


def fit(usable: Sequence[Run], start: Constants) -> Constants:
    """The constants of the least error over `usable`, near their usual values."""
    found = start
    for number in range(ROUNDS):
        now = errors(usable, found)
        found = stepped(found, slopes(usable, found, now), now, weights(usable, now))
        print(f"round {number + 1}: mean error before it {np.abs(now).mean():.4f}", file=sys.stderr, flush=True)
    return found


def slopes(usable: Sequence[Run], found: Constants, now: Array) -> Array:
    """Of each run's error by the logarithm of each constant."""
    return np.array([(errors(usable, moved(found, name, -STEP)) - now) / -STEP for name in BOUNDS]).T


def stepped(found: Constants, slope: Array, now: Array, weight: Array) -> Constants:
    """One step of weighted least squares in the logarithms of the constants, kept within their bounds."""
    away = np.array([math.log(getattr(found, name) / bound[1]) for name, bound in BOUNDS.items()])
    matrix = slope.T @ (weight[:, None] * slope) + np.eye(len(BOUNDS)) / DRAWN**2
    change = -np.linalg.solve(matrix, slope.T @ (weight * now) + away / DRAWN**2)
    for name, by in zip(BOUNDS, np.clip(change, -0.4, 0.4), strict=True):
        found = moved(found, name, float(by))
    return found


def moved(start: Constants, name: str, by: float) -> Constants:
    """With one constant times exp(by), as far as its bounds allow."""
    _, _, low, high, _ = BOUNDS[name]
    return replace(start, **{name: min(high, max(low, getattr(start, name) * math.exp(by)))})


def weights(usable: Sequence[Run], now: Array) -> Array:
    """Of squares, so that they add up to absolute errors."""
    often = Counter(one.key[0] for one in usable)
    of_source = np.array([1 / math.sqrt(often[one.key[0]]) for one in usable])
    return of_source * (np.abs(now) < CUT) / np.maximum(np.abs(now), FLOOR)


def errors(usable: Sequence[Run], numbers: Constants) -> Array:
    """log(predicted / published) of each."""
    speeds = [steptime.tokens_per_second(one.device, one.facts, one.training, numbers) for one in usable]
    return np.log(np.array(speeds) / np.array([one.speed for one in usable]))


def held_out(usable: Sequence[Run], fitted: Constants) -> dict[str, dict[str, dict[str, float]]]:
    """By source: the constants fitted to all others, and the errors on it. Slopes are those at the constants of all."""
    now = errors(usable, fitted)
    slope, sources = slopes(usable, fitted, now), np.array([one.key[0] for one in usable])
    found = {}
    for source in dict.fromkeys(sources.tolist()):
        others = [one for one in usable if one.key[0] != source]
        there, numbers = now[sources != source], fitted
        for _ in range(ROUNDS):
            numbers = stepped(numbers, slope[sources != source], there, weights(others, there))
            there = now[sources != source] + slope[sources != source] @ apart(fitted, numbers)
        off = np.abs(np.exp(errors([one for one in usable if one.key[0] == source], numbers)) - 1)
        said = {"rows": len(off), "median_ape": float(np.median(off)), "mean_ape": float(off.mean())}
        found[source] = {"errors": said, "constants": asdict(numbers)}
    return found


def apart(one: Constants, other: Constants) -> Array:
    """The difference of the logarithms of their constants."""
    return np.array([math.log(getattr(other, name) / getattr(one, name)) for name in BOUNDS])


def text(fitted: Constants, name: str, count: int) -> str:
    lines = [f"# Written by scripts/fit_planner from {name} ({count} runs). What each means: constants.py.", ""]
    for field, (unit, _, low, high, source) in BOUNDS.items():
        value = f"{getattr(fitted, field):.4g}"
        lines.append(
            f'{field}: {{value: {value}, unit: {unit}, bounds: [{low:g}, {high:g}], source: "fitted; {source}"}}'
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
