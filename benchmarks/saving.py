"""What a checkpoint that is saved in the background holds up, in steps.

    python benchmarks/saving.py [--replicas 2] [--saves 8] > saving.json

One run of an 11 M-parameter Llama (6 layers, width 384, 512 tokens, context 64; weights and moments are 130 MB) on
local replicas, float32, one thread each, with a checkpoint every 24 steps. Of each save: from the commit of its step to
the arrival of the next step's event the first step; and over all steps until the next save what they took longer than
as many steps with no save under way, the median of which is taken between the same two saves. Saving takes processor
time from the steps where there is no core free, and that counts too.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from samestep.launch.local import Local
from samestep.recipe.load import dump
from samestep.recover.journal import Journal
from samestep.verbs.prepare import prepare
from samestep.verbs.train import execute

TINY = Path(__file__).parent.parent / "recipes" / "tiny.yaml"
EVERY = 24  # steps
AFTER = 2  # steps past the end of a save that are not yet taken for undisturbed


class Hearer:
    """Notes when steps and checkpoints arrived."""

    def __init__(self) -> None:
        self.steps: dict[int, float] = {}
        self.saved: dict[int, float] = {}

    def __call__(self, event: dict) -> None:
        if event["event"] in ("step", "checkpoint"):
            (self.steps if event["event"] == "step" else self.saved)[event["step"]] = time.monotonic()
            print(event["event"], event["step"], file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--saves", type=int, default=8)
    wish = parser.parse_args()
    heard = Hearer()
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on a disk, unlike /tmp on many machines
        lived(Path(folder).absolute(), wish, heard)
    saves = [held_up(heard, step) for step in sorted(heard.saved) if step + EVERY in heard.steps]
    medians = {key: round(statistics.median(each[key] for each in saves), 3) for key in saves[0]}
    worst = {key: max(each[key] for each in saves) for key in ("held_up_steps", "first_step_over_usual")}
    found = {"medians": medians, "worst": worst, "saves": saves}
    print(json.dumps({"cores": os.cpu_count(), "replicas": wish.replicas} | found, indent=1))


def lived(run: Path, wish: argparse.Namespace, heard: Hearer) -> None:
    settings = {"steps": EVERY * (wish.saves + 1), "lanes": 4, "batch.micro_batch": 8, "batch.accumulate": 1}
    settings |= {"model.width": 384, "model.layers": 6, "model.heads": 6, "model.dtype": "float32"}
    settings |= {"run.replicas": wish.replicas, "recover.digest_every": 0, "sample.prompt": None}
    settings |= {"recover.checkpoint_every": EVERY, "recover.keep": 1}
    prepared = prepare(TINY, [f"{key}={json.dumps(value)}" for key, value in settings.items()], lambda line: None)
    (run / "recipe.yaml").write_text(dump(prepared.recipe))
    with Journal(run / "journal.jsonl") as journal:
        execute(prepared.job("train", run), Local(), journal, [heard])


def held_up(heard: Hearer, step: int) -> dict:
    took = {n: heard.steps[n] - heard.steps[n - 1] for n in range(step + 1, step + EVERY + 1)}
    over = next((n for n in took if heard.steps[n] > heard.saved[step]), step + EVERY)
    usual = statistics.median(seconds for n, seconds in took.items() if n > over + AFTER)
    lost = sum(took[n] - usual for n in range(step + 1, over + AFTER + 1))
    return {
        "usual_step": round(usual, 4),
        "save": round(heard.saved[step] - heard.steps[step], 4),
        "first_step_over_usual": round(took[step + 1] / usual, 3),
        "held_up_seconds": round(lost, 4),
        "held_up_steps": round(lost / usual, 3),
    }


if __name__ == "__main__":
    main()
