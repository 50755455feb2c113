"""How long a user waits: for `samestep --help`, and from `samestep train` to the first step of recipes/tiny.yaml.

    python benchmarks/start.py [--rounds 5] > start.json

Seconds, with a warm cache of tokenized data; medians and raw repeats.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMESTEP = [sys.executable, "-m", "samestep.cli"]
TINY = Path(__file__).parent.parent / "recipes" / "tiny.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        first_step(folder)  # fills the cache
        found = {
            "help_seconds": [help_time() for _ in range(rounds)],
            "first_step_seconds": [first_step(folder) for _ in range(rounds)],
        }
    medians = {f"median_{name}": round(statistics.median(values), 3) for name, values in found.items()}
    print(json.dumps(medians | found, indent=1))


def help_time() -> float:
    began = time.perf_counter()
    subprocess.run([*SAMESTEP, "--help"], check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - began, 3)


def first_step(folder: str) -> float:
    command = [*SAMESTEP, "train", str(TINY), "steps=1", f"run.cache={folder}/cache", "sample.prompt=null"]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 1/"):
                seconds = time.perf_counter() - began
        if process.wait():
            raise SystemExit("samestep train failed")
    return round(seconds, 3)


if __name__ == "__main__":
    main()
