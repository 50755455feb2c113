"""Real runs with real kills, by seed: the digest is that of the undisturbed run, and the audit finds nothing amiss.

    scripts/survive [--runs 200] [--first 0] [--seed N]

A seed draws an objective, 2 to 8 replicas, who holds the moments, a disturbance and its instants, anywhere between the
start of the first process and the end. Prints JSON: of each disturbance the runs and those that went wrong.
"""

import argparse
import ast
import contextlib
import inspect
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path

import psutil

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
OBJECTIVES = ("causal", "sft", "lora", "dpo", "dpo-base", "reward")
DISTURBANCES = ("one", "two at once", "five", "join", "all at once", "engine", "stop")
SETTINGS = {"recover.checkpoint_every": 4, "recover.digest_every": 0, "evaluate.every": 5}
ENDED = (4, 75, 143, -signal.SIGKILL)  # more deaths than a run takes; stopped; the engine killed
LIMIT = 240  # seconds; a run that takes longer hangs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one")
    wish = parser.parse_args()
    seeds = [wish.seed] if wish.seed is not None else range(wish.first, wish.first + wish.runs)
    counts, wrong, began = Counter(), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="samestep-survive-") as folder:
        stage = Stage(Path(folder))
        for seed in seeds:
            what, problem = stage.play(seed)
            counts[what] += 1
            if problem:
                wrong.append({"seed": seed, "what": what, "problem": problem})
            print(f"seed {seed}: {what}: {problem or 'same'}", file=sys.stderr, flush=True)
    print(json.dumps({"runs": dict(counts), "wrong": wrong, "seconds": round(time.monotonic() - began)}, indent=1))
    return bool(wrong)


class Stage:
    """Data, a small model to start from, and the undisturbed run of each objective, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_samples(folder)
        base = self.train(folder / "base", ["steps=2", "sample.prompt=null"]).wait_done()
        assert base.code == 0, base.err
        self._whole: dict[str, tuple[str, float]] = {}

    def train(self, run: Path, changes: list[str]) -> "Process":
        return Process(["train", str(TINY), "--run", str(run), f"run.cache={self.folder / 'cache'}", *changes])

    def whole(self, objective: str) -> tuple[str, float]:
        """The digest of the undisturbed run on two replicas, and the seconds that it took."""
        if objective not in self._whole:
            began = time.monotonic()
            done = self.train(
                self.folder / f"whole-{objective}", [*self.changes(objective), "run.replicas=2"]
            ).wait_done()
            assert done.code == 0, done.err
            self._whole[objective] = done.json["digest"], time.monotonic() - began
        return self._whole[objective]

    def changes(self, objective: str) -> list[str]:
        settings = SETTINGS | {"steps": 10}
        if objective != "causal":
            data = "pairs" if objective[:3] in ("dpo", "rew") else "samples"
            kind = {"lora": "sft", "dpo-base": "dpo"}.get(objective, objective)
            settings |= {
                "data.source": str(self.folder / f"{data}.jsonl"),
                "objective.kind": kind,
                "sample.prompt": None,
            }
            settings |= {"model": {"path": str(self.folder / "base" / "model"), "dtype": "bfloat16"}}
            settings |= {"data.packing": True, "data.too_long": "truncate"}
        if objective in ("lora", "dpo-base", "reward"):
            settings["model"]["lora"] = {"rank": 4, "dropout": 0.1}
        if objective == "dpo-base":
            settings["objective.reference"] = "base"
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]

    def play(self, seed: int) -> tuple[str, str | None]:
        """What was done, and what went wrong, if anything did."""
        draw = random.Random(seed)
        objective, what, replicas = draw.choice(OBJECTIVES), draw.choice(DISTURBANCES), draw.randint(2, 8)
        state = draw.choice(("sharded", "mirrored", "replicated"))
        said = f"{objective}, {replicas} replicas, {state}, {what}"
        digest, seconds = self.whole(objective)
        run = self.folder / f"run-{seed}"
        changes = [*self.changes(objective), f"run.replicas={replicas}", f"sync.state={state}"]
        process = self.train(run, [*changes, *(["run.replace=false"] if what == "one" else [])])
        disturb(process, what, draw, seconds)
        done = process.wait_done()
        if done.code in ENDED and (run / "journal.jsonl").exists():
            said += f", resumed after exit code {done.code}"
            done = Process(["resume", str(run), f"run.replicas={draw.randint(1, 8)}"]).wait_done()
        return said, self.problem(done, run, digest)

    def problem(self, done: "Done", run: Path, digest: str) -> str | None:
        if done.code == -signal.SIGKILL and not (run / "journal.jsonl").exists():
            return None  # the engine was killed before the run began
        if done.code:
            return f"exit code {done.code}: {done.err[-2000:]}"
        if done.json["digest"] != digest:
            return f"digest {done.json['digest']}, undisturbed {digest}"
        found = Process(["audit", str(run)]).wait_done()
        return None if found.code == 0 else f"audit: {found.out}"


def disturb(process: "Process", what: str, draw: random.Random, seconds: float) -> None:
    """Kill at instants of the run that are drawn; nothing where it has ended by then."""
    if what in ("engine", "stop"):
        process.sleep(draw.uniform(0, seconds))
        process.signal(signal.SIGKILL if what == "engine" else signal.SIGTERM)
        return
    times = sorted(draw.uniform(0, seconds) for _ in range(5 if what == "five" else 1))
    for before, instant in zip([0.0, *times], times, strict=False):
        process.sleep(instant - before)
        victims = process.replicas()
        count = {"two at once": 2, "all at once": len(victims)}.get(what, 1)
        for victim in draw.sample(victims, min(count, len(victims))):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:
        return json.loads(self.out)


class Process:
    def __init__(self, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "samestep.cli", *arguments, "--json"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_done(self) -> Done:
        try:
            out, err = self._process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)
            out, err = self._process.communicate()
            err += f"\nhung for {LIMIT} s"
        return Done(self._process.returncode, out, err)

    def sleep(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, seconds))

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def replicas(self) -> list[psutil.Process]:
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    found += [child] if "samestep.replica" in child.cmdline() else []
        return found


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
