"""From a kill to the next committed step: seconds, by who holds the moments.

    python benchmarks/recovery.py [--replicas 4] [--rounds 10] > recovery.json

Runs recipes/tiny.yaml on local replicas, with digests off. In each round and for each kind of state one run is made, in
which one replica after the other is killed at an instant that is drawn, never replaced, until two are left. Counted is
the time from the kill to the arrival of the next step's event at the engine; beside it the usual time of a step at that
number of replicas, the time until the new generation is formed, and whether anything was read from the disk.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from samestep.launch.local import Local
from samestep.recipe.load import dump
from samestep.recover.journal import Journal
from samestep.verbs.prepare import prepare
from samestep.verbs.train import execute

TINY = Path(__file__).parent.parent / "recipes" / "tiny.yaml"
STATES = ("mirrored", "replicated")
BETWEEN = 12  # steps before each kill


class Killer:
    """Hears the events of a run; some time after every so many steps it kills a replica."""

    def __init__(self, draw: random.Random, kills: int) -> None:
        self._draw, self._left = draw, kills
        self._pids: dict[int, int] = {}
        self._steps: list[float] = []
        self._killed: float | None = None
        self.found: list[dict] = []

    def __call__(self, event: dict) -> None:
        now = time.monotonic()
        if event["event"] == "started":
            self._pids[event["rank"]] = event["pid"]
        if event["event"] == "formed" and self._killed is not None:
            self._formed, self._restored = now - self._killed, event["restored"]
            self._pids = {}
        if event["event"] != "step":
            return
        if self._killed is not None and self._formed:  # formed: else the step was on its way
            usual = statistics.median(b - a for a, b in zip(self._steps, self._steps[1:], strict=False))
            found = {"seconds": now - self._killed, "to_formed": self._formed, "step_before": usual}
            self.found.append(found | {"restored": self._restored, "left": len(self._pids)})
            self._killed, self._steps = None, []
        self._steps.append(now)
        if len(self._steps) == BETWEEN and self._left:
            self._left -= 1
            threading.Timer(self._draw.uniform(0, self._steps[-1] - self._steps[-2]), self._kill).start()

    def _kill(self) -> None:
        self._formed, self._killed = 0.0, time.monotonic()
        os.kill(self._draw.choice(list(self._pids.values())), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    wish = parser.parse_args()
    repeats: dict[str, list[dict]] = {state: [] for state in STATES}
    for number in range(wish.rounds):
        for state in STATES:
            repeats[state] += lived(state, wish.replicas, random.Random(number))
            print(state, repeats[state][-1], file=sys.stderr, flush=True)
    print(json.dumps({"cores": os.cpu_count(), "replicas": wish.replicas} | report(repeats), indent=1))


def lived(state: str, replicas: int, draw: random.Random) -> list[dict]:
    kills = replicas - 2
    settings = {"steps": BETWEEN * (kills + 1) + 6, "run.replicas": replicas, "sync.state": state}
    settings |= {"run.replace": False, "recover.digest_every": 0, "sample.prompt": None}
    prepared = prepare(TINY, [f"{key}={json.dumps(value)}" for key, value in settings.items()], lambda line: None)
    killer = Killer(draw, kills)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "recipe.yaml").write_text(dump(prepared.recipe))
        with Journal(run / "journal.jsonl") as journal:
            execute(prepared.job("train", run), Local(), journal, [killer])
    return killer.found


def report(repeats: dict[str, list[dict]]) -> dict:
    def medians(found: list[dict]) -> dict:
        keys = ("seconds", "to_formed", "step_before")
        return {key: round(statistics.median(one[key] for one in found), 4) for key in keys}

    return {"medians": {state: medians(found) for state, found in repeats.items()}, "repeats": repeats}


if __name__ == "__main__":
    main()
