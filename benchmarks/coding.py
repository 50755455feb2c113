"""How long it takes to round, pack and decode sums and new weights, on one thread.

    python benchmarks/coding.py [--elements 14680064] [--rounds 7] > coding.json

Milliseconds; medians and raw repeats. Sums are of one lane; `wide` is packed into twice the bits, as two lanes are.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from samestep.wire import codec
from samestep.wire.formats import LIMITS, bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=14 << 20)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    values = torch.randn(asked.elements, generator=torch.Generator().manual_seed(1)) * 1e-3
    tasks = {"add a lane's feedback": adding(values), "peaks": lambda: codec.peaks(values), **sums(values)}
    found = {name: timed(task, asked.rounds) for name, task in (tasks | weights(values)).items()}
    medians = {name: round(statistics.median(times), 1) for name, times in found.items()}
    print(json.dumps({"elements": asked.elements, "median_ms": medians, "ms": found}, indent=1))


def adding(values: torch.Tensor) -> Callable[[], object]:
    other, out = values.clone(), values.clone()
    return lambda: torch.add(values, other, out=out)


def sums(values: torch.Tensor) -> dict[str, Callable[[], object]]:
    """A lane is rounded to the same scales again and again: what is left is zero or half a unit, never a denormal."""
    tasks: dict[str, Callable[[], object]] = {}
    out, half, short = torch.empty_like(values), values.clone(), torch.empty_like(values, dtype=torch.bfloat16)
    for name, limit in LIMITS.items():
        scales = codec.scales(codec.codes(codec.peaks(values), limit))
        for what, width in ((name, bits(limit)), (f"{name} wide", 2 * bits(limit))):
            packed = torch.empty(values.numel() * width // 8, dtype=torch.uint8)
            lane = values.clone()
            tasks[f"round off {what}"] = lambda a=(lane, scales, width, packed): codec.round_off([a[0]], *a[1:])
            tasks[f"add up {what}"] = lambda a=(packed, width, scales): codec.add_up([a[:2]], a[2], out)
    tasks["round off bfloat16"] = lambda: codec.halve(half, short)
    return tasks


def weights(values: torch.Tensor) -> dict[str, Callable[[], object]]:
    tasks: dict[str, Callable[[], object]] = {}
    out = torch.empty_like(values)
    for name, format in codec.FORMATS.items():
        data = torch.empty(format.size(values.numel()), dtype=torch.uint8)
        tasks[f"tell {name}"] = lambda f=format, d=data: f.encode(values, d)
        tasks[f"hear {name}"] = lambda f=format, d=data: f.decode(d, out)
    return tasks


def timed(task: Callable[[], object], rounds: int) -> list[float]:
    task()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        task()
        times.append(round(1e3 * (time.perf_counter() - began), 1))
    return times


if __name__ == "__main__":
    main()
