"""A month on 100,000 replicas and the 54 days of Llama 3 in simulated time: goodput of two policies, and its price.

    python benchmarks/simulation.py [--cases month llama3 ...] [--to FILE] [--pictures FOLDER]

Failures come at the rate that Llama 3 had (419 in 54 days on 16,384 GPUs, arXiv 2407.21783, section 3.3.4). Everything
else is assumed, and stands in the JSON: a step takes 20 s, 1 s of it exchange; a save holds all up for 30 s; a loss is
known after 10 s; a restart from a checkpoint takes 5 minutes, forming a generation 10 s, letting one in 30 s more;
another machine is there after 10 minutes on the average. Saves are as frequent as is best for each policy (Daly 2006).
"""

import argparse
import json
import os
import platform
import resource
import sys
from pathlib import Path

from samestep.plan.simulate import POLICIES, Price
from samestep.plan.world import Setup
from samestep.verbs.simulate import as_dict, drawn, lines, run

# 16,384 GPUs: as many replicas, or 128 replicas of 128 (405 B parameters: 8-way tensor and 16-way pipeline parallel).
CASES = {
    "month": (Setup(100_000, 20.0, exchange=1.0), 2),
    "llama3": (Setup(16_384, 20.0, 54.0, exchange=1.0), 8),
    "llama3_spares": (Setup(16_384, 20.0, 54.0, exchange=1.0, spares=16), 8),
    "llama3_405b": (Setup(128, 20.0, 54.0, 128, exchange=1.0, lanes=2048), 50),
    "llama3_405b_spares": (Setup(128, 20.0, 54.0, 128, exchange=1.0, lanes=2048, spares=2), 50),
    "spot": (Setup(512, 20.0, 30.0, exchange=1.0), 50),
}
SPOT = 0.05  # preemptions of a device and a day


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--to", type=Path, help="where earlier cases are kept")
    parser.add_argument("--pictures", type=Path)
    asked = parser.parse_args()
    found = json.loads(asked.to.read_text()) if asked.to and asked.to.exists() else {}
    found["machine"] = {"processors": os.cpu_count(), "python": platform.python_version()}
    for case in asked.cases:
        found[case] = one(case, asked.pictures)
        if asked.to:
            asked.to.write_text(json.dumps(found, indent=1) + "\n")
    if not asked.to:
        print(json.dumps(found, indent=1))


def one(case: str, pictures: Path | None) -> dict:
    setup, seeds = CASES[case]
    price = Price(2.0)
    if case == "spot":
        price = Price(1.0, 0.3)
        setup = Setup(**(vars(setup) | {"hazards": type(setup.hazards)(preemptions=SPOT)}))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    made = run(setup, price, list(POLICIES), range(1, seeds + 1))
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    print(case, *lines(made), f"{made.seconds:.1f} s, {used:.1f} s of processor", sep="\n", file=sys.stderr)
    if pictures:
        (pictures / f"{case}.svg").write_text(drawn(made))
    told = as_dict(made) | {"processor_seconds": round(used, 1)}
    for policy in told["policies"].values():
        for each in policy["runs"]:
            del each["curve"]
    return told


if __name__ == "__main__":
    main()
