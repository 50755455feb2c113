"""Fits the constants of samestep/plan/constants.yaml to published runs, and says how well that carries to other sources.

    scripts/fit_planner RUNS.csv [--write]

The constants are those that no data sheet gives: shares of rates and overheads, the same for every model, device and
source. Each is changed in turn by a factor, kept if the mean error falls, and the factor shrinks (a pattern search:
Hooke and Jeeves 1961). The error of a run is |log(predicted / published)| of its tokens/s, cut off at CUT so that no
mistaken row pulls; a source weighs as the square root of its runs. Every constant stays within its bounds, which are
what is physically thinkable. Held out: fitted again without one source at a time and judged on it alone.
"""

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from samestep.plan import constants, steptime
from samestep.plan.constants import Constants
from samestep.plan.published import Run, runs

CUT = 0.5  # of an error that counts
FACTORS = (1.3, 1.12, 1.05, 1.02)
# unit, lowest and highest value that is thinkable, what says so
BOUNDS = {
    "sustained": ("share", 0.6, 1.0, "clocks under a training step's power"),
    "streamed": ("share", 0.6, 0.95, "STREAM reaches 0.9 of the data sheet's bandwidth"),
    "passes": ("factor", 0.5, 2.0, "the count of passes in kernels.py"),
    "flash": ("share", 0.3, 0.9, "FlashAttention-1 and -2 (arXiv 2205.14135, 2307.08691), of the matrix ceiling"),
    "heads": ("power", 0.1, 1.0, "heads of 64 are slower than those of 128 (arXiv 2307.08691, figure 5)"),
    "launch": ("s", 3e-6, 15e-6, "an eager operation of PyTorch"),
    "linked": ("share", 0.5, 0.9, "bus bandwidth of nccl-tests"),
    "routed": ("share", 0.4, 0.95, "bus bandwidth of nccl-tests between hosts"),
    "hidden": ("share", 0.3, 1.0, "exchanges start once a bucket is full"),
    "contended": ("share", 0.0, 0.5, "exchanges take multiprocessors and memory bandwidth"),
    "step": ("s", 0.002, 0.06, "data, logging and the optimizer's launches"),
    "jitter": ("share", 0.0, 0.02, "of a step for each doubling of the hosts"),
    "pressed": ("share", 0.0, 0.4, "torch's allocator when memory is full"),
    "graph": ("factor", 0.8, 3.0, "passes of TensorFlow's graph executor, of eager ones"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--write", action="store_true", help="write constants.yaml")
    arguments = parser.parse_args()
    with arguments.runs.open(newline="") as file:
        usable = [one for one in runs(list(csv.DictReader(file))) if isinstance(one, Run) and one.speed]
    fitted = fit(usable, constants.constants())
    print(json.dumps({"all": asdict(fitted), "held_out": held_out(usable, fitted)}, indent=1))
    if arguments.write:
        constants.FILE.write_text(text(fitted, arguments.runs.name, len(usable)))


def fit(usable: Sequence[Run], start: Constants) -> Constants:
    """The constants of the least mean error over `usable`, near `start`."""
    found, best = start, objective(usable, start)
    for factor in FACTORS:
        better = True
        while better:
            found, error = around(found, best, factor, lambda one: objective(usable, one))
            better, best = error < best - 1e-4, error
        print(f"factor {factor}: mean error {best:.4f}", file=sys.stderr, flush=True)
    return found


def around(
    start: Constants, best: float, factor: float, error: Callable[[Constants], float]
) -> tuple[Constants, float]:
    """Each constant a factor up and down in turn; what is better is kept."""
    for name, (_, low, high, _) in BOUNDS.items():
        for scale in (factor, 1 / factor):
            value = min(high, max(low, max(getattr(start, name), 1e-3 * high) * scale))
            tried = replace(start, **{name: value})
            tried_error = error(tried)
            if tried_error < best:
                start, best = tried, tried_error
                break
    return start, best


def objective(usable: Sequence[Run], numbers: Constants) -> float:
    sources: dict[str, list[float]] = {}
    for one in usable:
        sources.setdefault(one.key[0], []).append(min(CUT, abs(ratio(one, numbers))))
    weights = {source: math.sqrt(len(errors)) for source, errors in sources.items()}
    return sum(weights[s] * statistics.fmean(e) for s, e in sources.items()) / sum(weights.values())


def ratio(one: Run, numbers: Constants) -> float:
    """log(predicted / published)."""
    return math.log(steptime.tokens_per_second(one.device, one.facts, one.training, numbers) / (one.speed or 1.0))


def held_out(usable: Sequence[Run], start: Constants) -> dict[str, dict[str, float]]:
    """Median and mean absolute percentage error on each source, fitted to all others."""
    found = {}
    for source in dict.fromkeys(one.key[0] for one in usable):
        numbers = fit([one for one in usable if one.key[0] != source], start)
        errors = [abs(math.exp(ratio(one, numbers)) - 1) for one in usable if one.key[0] == source]
        found[source] = {
            "rows": len(errors),
            "median_ape": statistics.median(errors),
            "mean_ape": statistics.fmean(errors),
        }
    return found


def text(fitted: Constants, name: str, count: int) -> str:
    lines = [f"# Written by scripts/fit_planner from {name} ({count} runs). What each means: constants.py.", ""]
    for field, (unit, low, high, source) in BOUNDS.items():
        value = f"{getattr(fitted, field):.4g}"
        lines.append(
            f'{field}: {{value: {value}, unit: {unit}, bounds: [{low:g}, {high:g}], source: "fitted; {source}"}}'
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
