"""Real runs with real kills, by seed: the digest is that of the undisturbed run, and the audit finds nothing amiss.

    scripts/survive [--runs 200] [--seed 1] [--out FILE]

A seed draws 2 to 8 replicas, who holds the moments, whether the lost are replaced, and the instants; objectives and
shapes take turns, so that 72 seeds in a row have each with each, a single kill half of the time. The faults are
those of `samestep chaos` (recover/faults.py). Prints a line a run, and the summary as JSON, which FILE
has after each run. Exit code 1 where a run was not the same; `--runs 1 --seed N` plays it again.
"""

import argparse
import ast
import contextlib
import faulthandler
import inspect
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from samestep.recipe.load import dump
from samestep.recover import journal
from samestep.recover.faults import Scope, schedule
from samestep.recover.holding import Holding
from samestep.verbs import chaos
from samestep.verbs.logbook import Hearer
from samestep.verbs.prepare import Prepared, prepare
from samestep.verbs.train import Summary
from tests.same import forking

Settings = dict[str, Any]

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
KINDS = {"causal": "causal", "sft": "sft", "lora": "sft", "dpo": "dpo", "dpo-base": "dpo", "reward": "reward"}
ADAPTED = ("lora", "dpo-base", "reward")
SINGLE = "one"
SHAPES = {  # kinds of faults, and how many
    SINGLE: (["kill"], 1),
    "five": (["kill"], 5),
    "join": (["kill"], 2),
    "two at once": (["two"], 1),
    "all": (["halt"], 1),
    "anything": (["kill", "two", "pause", "halt", "torn", "flip", "full"], 3),
    "engine": ([], 0),  # it is killed itself, or asked to stop
}
SHORT = {"steps": 10, "recover.checkpoint_every": 3, "evaluate.every": 5}
LONG = {"steps": 30, "recover.checkpoint_every": 10, "evaluate.every": 15}  # time enough for a replica to join
FROM_FILES = {"data.too_long": "truncate", "data.packing": True, "sample.prompt": None}
EARLY = 8  # steps
IMPORTS = 2.0  # seconds before `samestep train` begins
LIMIT = 240  # seconds; a run that takes longer hangs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--out", type=Path, help="a file for the summary")
    wish = parser.parse_args()
    forking.prepare()
    with tempfile.TemporaryDirectory(prefix="samestep-survive-") as folder:
        found = survive(Stage(Path(folder)), range(wish.seed, wish.seed + wish.runs), wish.out)
    print(json.dumps(found, indent=1))
    return bool(found["wrong"])


def survive(stage: "Stage", seeds: range, out: Path | None) -> dict:
    began, counts, events, wrong = time.monotonic(), Counter(), Counter(), []
    for number, seed in enumerate(seeds, start=1):
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        shape, said, outcome = stage.play(seed)
        counts[shape] += 1
        events.update(outcome.events)
        if outcome.problems:
            wrong.append({"seed": seed, "what": said, "struck": outcome.struck, "problems": outcome.problems})
        verdict = "; ".join(outcome.problems) or "same"
        print(f"seed {seed}: {said}, {outcome.seconds:.1f} s: {verdict}", file=sys.stderr, flush=True)
        summary = {"runs": number, "same": number - len(wrong), "shapes": dict(counts), "events": dict(events)}
        summary |= {"seconds": round(time.monotonic() - began), "wrong": wrong}
        if out:
            out.write_text(json.dumps(summary, indent=1) + "\n")
    faulthandler.cancel_dump_traceback_later()
    return summary


class Stage:
    """Data, a small model to start from, and the undisturbed run of each objective, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._wholes: dict[tuple[str, str], tuple[Prepared, Summary, float]] = {}
        write_samples(folder)
        self._base = folder / "base"
        chaos.undisturbed(self._prepared({"steps": 2, "sample.prompt": None}), self._base)

    def play(self, seed: int) -> tuple[str, str, chaos.Outcome]:
        """The shape, what was done, and what came of it."""
        draw = random.Random(seed)
        (objective, shape), replicas = turn(seed), draw.randint(2, 8)
        state, owed = draw.choice(("sharded", "mirrored", "replicated")), shape == "join" or draw.random() < 0.5
        whole, undisturbed, seconds = self._whole(objective, LONG if shape == "join" else SHORT)
        prepared, run = on(whole, state, {"replicas": replicas, "replace": owed}), self._folder / f"run-{seed}"
        said = f"{objective}, {replicas} replicas, {state}, {shape}"
        faults, live = schedule(seed, within(prepared, shape), SHAPES[shape][1], SHAPES[shape][0]), None
        if shape == "engine":
            number, instant = draw.choice((signal.SIGKILL, signal.SIGTERM)), draw.uniform(0, seconds + IMPORTS)
            said += f": {number.name} after {instant:.2f} s"
            live = partial(without_engine, prepared, run, number, instant, draw.randint(1, 8))
        outcome = chaos.disturbed(prepared, run, seed, faults, undisturbed, lambda line: None, live)
        return shape, "; ".join([said, *outcome.struck]), outcome

    def _whole(self, objective: str, settings: Settings) -> tuple[Prepared, Summary, float]:
        """What is run, the undisturbed run of it on two replicas, and its seconds."""
        key = objective, json.dumps(settings)
        if key not in self._wholes:
            prepared, began = self._prepared(self._settings(objective) | settings), time.monotonic()
            summary = chaos.undisturbed(prepared, self._folder / f"whole-{len(self._wholes)}")
            self._wholes[key] = prepared, summary, time.monotonic() - began
        return self._wholes[key]

    def _prepared(self, settings: Settings) -> Prepared:
        settings = settings | {"run.cache": str(self._folder / "cache")}
        return prepare(TINY, [f"{key}={json.dumps(value)}" for key, value in settings.items()], lambda line: None)

    def _settings(self, objective: str) -> Settings:
        kind = KINDS[objective]
        if kind == "causal":
            return {}
        model = {"path": str(self._base / "model"), "dtype": "bfloat16"}
        if objective in ADAPTED:
            model["lora"] = {"rank": 4, "dropout": 0.1}
        source = self._folder / ("samples.jsonl" if kind == "sft" else "pairs.jsonl")
        found = FROM_FILES | {"objective.kind": kind, "data.source": str(source), "model": model}
        return found | ({"objective.reference": "base"} if objective == "dpo-base" else {})


def turn(seed: int) -> tuple[str, str]:
    """The objective and the shape."""
    shapes = [*SHAPES, *[SINGLE] * (len(SHAPES) - 2)]
    return list(KINDS)[seed % len(KINDS)], shapes[(seed + seed // len(KINDS)) % len(shapes)]


def on(prepared: Prepared, state: str, machines: Settings) -> Prepared:
    """The same run on other machines, where `state` says how many replicas hold each moment."""
    recipe = prepared.recipe
    run, sync = recipe.run.model_copy(update=machines), recipe.sync.model_copy(update={"state": state})
    return replace(
        prepared, recipe=recipe.model_copy(update={"run": run, "sync": sync}), holding=Holding(state, "drawn")
    )


def within(prepared: Prepared, shape: str) -> Scope:
    """To join takes time, so the deaths before it come early."""
    scope = chaos.scope(prepared)
    return replace(scope, steps=EARLY) if shape == "join" else scope


def without_engine(
    prepared: Prepared, run: Path, number: signal.Signals, instant: float, replicas: int, hearers: list[Hearer]
) -> None:
    """`samestep train` hears a signal at an instant, anywhere from its start on; then the run is resumed."""
    recipe = run.with_suffix(".yaml")
    recipe.write_text(dump(prepared.recipe))
    command = [sys.executable, "-m", "samestep.cli", "train", str(recipe), "--run", str(run)]
    engine = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        engine.wait(instant)
    engine.send_signal(number)
    engine.wait()
    events = journal.read(run / "journal.jsonl") if (run / "journal.jsonl").exists() else []
    if not events:  # killed before the run began
        shutil.rmtree(run, ignore_errors=True)
        chaos.begin(prepared, run, hearers)
    elif events[-1]["event"] != "finished":
        chaos.go_on(run, replicas, hearers)
    else:
        for event in events:
            hearers[0](event)


def write_samples(folder: Path) -> None:
    """Questions for the words that Python's textwrap, inspect and ast say of their functions."""
    told = [
        (name, " ".join(found.split())[:200])
        for module in (textwrap, inspect, ast)
        for name, item in sorted(vars(module).items())
        if callable(item) and (found := inspect.getdoc(item))
    ]
    samples = [{"prompt": f"What is {name}? ", "completion": text} for name, text in told]
    others = [text for _, text in told[1:] + told[:1]]
    pairs = [
        {"prompt": f"What is {name}? ", "chosen": text, "rejected": other}
        for (name, text), other in zip(told, others, strict=True)
        if text != other
    ]
    for file, rows in (("samples", samples), ("pairs", pairs)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
