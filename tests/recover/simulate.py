"""Many simulated runs, or one again: scripts/simulate [--seeds N] [--first N] [--jobs N] [--seed N]."""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.recover.simulator import Outcome, simulate

CHUNK = 500  # seeds handed to a process at a time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, help="only this one")
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds) if asked.seed is None else range(asked.seed, asked.seed + 1)
    start = time.perf_counter()
    with ProcessPoolExecutor(asked.jobs) as pool:
        outcomes = list(pool.map(simulate, seeds, chunksize=CHUNK))
    print(json.dumps(summary(outcomes, time.perf_counter() - start), indent=2))
    return int(any(outcome.law for outcome in outcomes))


def summary(outcomes: list[Outcome], seconds: float) -> dict[str, object]:
    return {
        "seeds": len(outcomes),
        "events": sum(outcome.events for outcome in outcomes),
        "runs_with_a_restoration": sum(outcome.restored > 0 for outcome in outcomes),
        "runs_that_nobody_survived": sum(outcome.ended for outcome in outcomes),
        "broken_laws": [{"seed": outcome.seed, "law": outcome.law} for outcome in outcomes if outcome.law],
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
