"""Held-out loss against time on slow networks: every strategy of samestep, torch DDP, and DDP with PowerSGD.

    python benchmarks/network.py all --into benchmarks/results/network.json > /dev/null
    python benchmarks/network.py curves [--methods int4 diloco] --into FILE        in pieces: what FILE has is kept
    python benchmarks/network.py steps --rates 100mbit [--rounds 2] --into FILE
    python benchmarks/network.py report --into FILE --picture docs/network.svg

The 13.8 M-parameter Llama (6 layers, width 384, 8,192 tokens, context 256) on the Python standard library's source, 4
replicas with 4 rows a step each, one thread a replica, bfloat16 autocast, fused AdamW, clipping at 1.0, the same
samples in the same order for all, 20 steps of warm-up and then one learning rate, so that no loss depends on when a run
would have ended. Two things are measured, and put together:

    curves  held-out loss by step, every 20 steps, at full speed on this machine: it does not depend on the network, nor
            under samestep on the number of replicas (2 here, the fastest on 2 cores). DDP makes 200 steps, the others
            as many more as they need to reach its loss, at most MOST
    steps   seconds of a step on 4 hosts, network namespaces whose links pass so many bits a second each way, one after
            the other: medians of single steps, under diloco the mean over the steps of a period, and beside it the
            first steps, after which islands meet each time. Steps that warm up do not count. `alone` sends nothing at
            all. `pilot` is what samestep expects there, and would take

In the report, of each rate: `seconds` is the time to the held-out loss that DDP has after 200 steps, the number of
steps (on the line between two evaluations) times the seconds of one; `over_ddp` and `over_alone` divide it by the time
of 200 steps of DDP and of no synchronisation (the bound). `loss` is that after 200 steps, and `over_ddp_percent` how
much it is above DDP's. `error` is how far the pilot's prediction is from the step that was measured, as a share of it.
PowerSGD has rank 2; that it sends its first two steps in full is not counted against it.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from network_picture import picture

REPLICAS, EVERY = 4, 20
LEAST, MOST = 200, 320  # steps of a curve
WARM_UP = 2
TIMED = {"10gbit": 5, "1gbit": 5, "100mbit": 5, "20mbit": 3}  # steps
RATES = {"10gbit": 10**10, "1gbit": 10**9, "100mbit": 10**8, "20mbit": 2 * 10**7}  # bits a second
TORCH = ("ddp", "powersgd", "alone")
# From scratch an outer momentum hurt in so few steps, and islands part fastest in the first ones.
TERMS = {"islands": REPLICAS, "every": EVERY, "together": 20, "rate": 1.0, "momentum": 0.0}
DILOCO = {"strategy": "diloco", "diloco": TERMS}
STREAMING = {"strategy": "diloco", "diloco": TERMS | {"fragments": 4, "overlap": 1}}
SAMESTEP = {  # by method, the section sync of its recipe
    "exact": {},
    "bfloat16": {"wire": "bfloat16"},
    "int8": {"wire": "int8"},
    "int4": {"wire": "int4"},
    "diloco": DILOCO,
    "diloco int8": DILOCO | {"wire": "int8"},
    "diloco int4": DILOCO | {"wire": "int4"},
    "streaming int4": STREAMING | {"wire": "int4"},
}
METHODS = (*TORCH, *SAMESTEP)
RECIPE = {
    "seed": 1,
    "steps": MOST,
    "lanes": REPLICAS,
    "model": {"layers": 6, "width": 384, "vocabulary": 8192},
    "data": {"source": "python-stdlib", "context": 256, "held_out": 0.004},
    "batch": {"micro_batch": 4},
    "optimizer": {"learning_rate": 1e-3, "warmup": 20, "schedule": "constant"},
    "recover": {"checkpoint_every": 0},
}
HERE = Path(__file__).resolve().parent
Events = list[dict]


def main() -> None:
    arguments = parse()
    found = json.loads(arguments.into.read_text()) if arguments.into and arguments.into.exists() else {}
    found = {"machine": machine(), "recipe": RECIPE, "curves": {}, "rates": {}} | found
    if found["recipe"] != RECIPE:
        raise SystemExit(f"{arguments.into} was measured with another recipe; give a new file")
    if arguments.piece in ("all", "curves"):
        curves(found, arguments)
    if arguments.piece in ("all", "steps"):
        for rate in arguments.rates:
            steps(found, rate, arguments)
    if arguments.piece in ("all", "report"):
        found["report"] = report(found)
        keep(found, arguments)
        if arguments.picture:
            arguments.picture.write_text(picture(found))
    print(json.dumps(found, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=("all", "curves", "steps", "report"))
    parser.add_argument("--into", type=Path, help="a file that keeps what is done, and says what is not done again")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--rates", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--rounds", type=int, default=1, help="of the steps at each rate")
    parser.add_argument("--picture", type=Path, help="an SVG file for the curves")
    parser.add_argument("--least", type=int, default=LEAST, help="steps of a curve; fewer for a trial")
    parser.add_argument("--most", type=int, default=MOST, help="steps of a curve that does not reach DDP's loss")
    parser.add_argument("--evaluate", type=int, default=EVERY, help="steps between evaluations")
    return parser.parse_args()


def machine() -> dict:
    return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def keep(found: dict, arguments: argparse.Namespace) -> None:
    if arguments.into:
        new = arguments.into.with_suffix(".new")
        new.write_text(json.dumps(found, indent=1) + "\n")
        new.replace(arguments.into)


# What is measured


def curves(found: dict, arguments: argparse.Namespace) -> None:
    """By method and step, the held-out loss. DDP comes first: its loss is what the others run to."""
    for method in METHODS:
        if method == "alone" or method in found["curves"] or method not in arguments.methods:
            continue
        least, target = arguments.least, target_of(found, arguments.least)
        say(f"curve of {method}, to step {least}" + (f" and to {target:.4f}" if target else ""))
        most = arguments.most if target else least
        heard = run(method, curve_recipe(method, arguments.evaluate), most, least, target or 0.0)
        evaluated = [e for e in heard if e["event"] == "evaluated"]
        found["curves"][method] = {str(e["step"]): round(e["loss"], 5) for e in evaluated}
        keep(found, arguments)


def target_of(found: dict, least: int) -> float | None:
    return found["curves"].get("ddp", {}).get(str(least))


def curve_recipe(method: str, evaluate: int) -> dict:
    return RECIPE | {
        "sync": SAMESTEP.get(method, {}),
        "evaluate": {"every": evaluate},
        "run": {"replicas": REPLICAS if method in TORCH else 2},
    }


def steps(found: dict, rate: str, arguments: argparse.Namespace) -> None:
    """By round and method, the seconds of single steps; and a pilot's predictions."""
    rounds = found["rates"].setdefault(rate, [])
    rounds += [{} for _ in range(arguments.rounds - len(rounds))]
    todo = [(n, method) for n in range(len(rounds)) for method in order(n, arguments) if method not in rounds[n]]
    if not todo:
        return
    with hosts(rate) as places:
        for number, method in todo:
            say(f"{rate}, round {number + 1}: {method}")
            rounds[number][method] = pilot(places) if method == "pilot" else timed(method, rate, places)
            keep(found, arguments)


def order(number: int, arguments: argparse.Namespace) -> list[str]:
    """A new one in each round."""
    methods = ["pilot", *arguments.methods]
    turn = number % len(methods)
    return methods[turn:] + methods[:turn]


def timed(method: str, rate: str, places: dict) -> list[float]:
    recipe = RECIPE | {"sync": SAMESTEP.get(method, {}), "run": {"replicas": REPLICAS, "hosts": places}}
    stop = WARM_UP + TIMED[rate]
    if of_islands(method):  # some of the first steps, after which all meet, then a period
        stop = WARM_UP + 2 + EVERY
        few = recipe["sync"]["diloco"] | {"together": WARM_UP + 2}
        recipe["sync"] = recipe["sync"] | {"diloco": few}
    began = time.monotonic()
    heard = [e for e in run(method, recipe, stop) if e["event"] == "step" and e.get("rank", 0) == 0]
    say(
        f"{rate}: {method} took {time.monotonic() - began:.0f} s, a step {step_seconds(method, each_step(heard)):.3f} s"
    )
    return each_step(heard)


def each_step(heard: Events) -> list[float]:
    return [round(e["seconds"], 4) for e in heard]


def pilot(places: dict) -> dict:
    from samestep.verbs.pilot import pilot as measure

    with written(RECIPE | {"sync": DILOCO | {"strategy": "auto"}, "run": {"hosts": places}}) as recipe:
        result = measure(recipe, [], None, say)
    predicted = {method_of(each.candidate): round(each.seconds, 4) for each in result.predictions}
    parts = {method_of(each.candidate): each.parts for each in result.predictions}
    return {"auto": method_of(result.choice.candidate), "predicted": predicted, "parts": parts} | result.measured


def method_of(candidate) -> str:
    """The name that a pilot's candidate has here."""
    wire = "" if candidate.wire == "float32" else candidate.wire
    return f"diloco {wire}".strip() if candidate.strategy == "diloco" else wire or "exact"


def run(method: str, recipe: dict, stop: int, least: int = 0, target: float = 0.0) -> Events:
    """What the replicas told; to `stop`, or from step `least` on until the held-out loss is at most `target`."""
    from samestep.launch.local import Local
    from samestep.verbs.prepare import prepare
    from samestep.verbs.program import program, terms

    engine, heard = Local(), []

    def hear(event: dict) -> None:
        heard.append(event)
        tell(method, event)
        if method in SAMESTEP and event["event"] == "evaluated" and event["step"] >= least and event["loss"] <= target:
            engine.stop()

    with written(recipe) as path:
        prepared = prepare(path, [], say)
        job = replace(prepared.job("train", path.parent / "run"), stop=stop, finish=False)
        started = program(job)
        if method in TORCH:
            command = [sys.executable, str(HERE / "network_torch.py"), method, str(least), str(target)]
            started = replace(started, command=command, ends_silent=False)
        try:
            engine.run(started, terms(job.recipe), hear)
        except Exception:
            for log in job.run.glob("logs/*"):
                say(f"{log.name}: {log.read_text()[-2000:]}")
            raise
    return heard


def tell(method: str, event: dict) -> None:
    """What a person may want to know while it runs."""
    if event["event"] == "evaluated":
        say(f"{method}: step {event['step']}, held-out loss {event['loss']:.4f}")
    if event["event"] in ("silent", "left", "unreachable"):
        say(f"{method}: {event}")


@contextlib.contextmanager
def written(recipe: dict) -> Iterator[Path]:
    """A recipe as a file in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="samestep-network-") as folder:
        path = Path(folder, "network.yaml")
        path.write_text(json.dumps(recipe))  # JSON is YAML
        yield path


@contextlib.contextmanager
def hosts(rate: str) -> Iterator[dict]:
    """Network namespaces with links of this rate, as the tests make them; needs root and iproute2."""
    sys.path.insert(0, str(HERE.parent / "tests" / "same"))
    from lab import Lab

    made = Lab(REPLICAS)
    try:
        made.up()
        made.shape(RATES[rate])
        yield made.hosts
    finally:
        made.down()


# What follows from it


def of_islands(method: str) -> bool:
    return "diloco" in str(SAMESTEP.get(method))


def step_seconds(method: str, seconds: list[float]) -> float:
    """Of single steps the median, of a period their mean."""
    return statistics.mean(seconds[WARM_UP + 2 :]) if of_islands(method) else statistics.median(seconds[WARM_UP:])


def first_seconds(method: str, seconds: list[float]) -> float:
    """Of one of the first steps, after which islands meet each time."""
    return statistics.median(seconds[WARM_UP : WARM_UP + 2]) if of_islands(method) else step_seconds(method, seconds)


def report(found: dict) -> dict:
    """Of methods and rates, as far as they have been measured."""
    target = target_of(found, LEAST)
    learnt = {method: learning(curve, target) for method, curve in found["curves"].items()} if target else {}
    rates = {rate: of_rate(rounds, learnt) for rate, rounds in found["rates"].items()}
    return {"target": target, "curves": learnt, "rates": rates}


def learning(curve: dict, target: float) -> dict:
    loss = curve.get(str(LEAST))
    more = None if loss is None else round(100 * (loss / target - 1), 3)
    return {"loss": loss, "over_ddp_percent": more, "steps": needed(curve, target)}


def needed(curve: dict, target: float) -> float | None:
    """Steps until the loss is first at most `target`; None where it never is."""
    points = sorted((int(step), loss) for step, loss in curve.items())
    for (before, high), (after, low) in itertools.pairwise(points):
        if low <= target:
            return round(before + (after - before) * (high - target) / (high - low), 1)
    return None


def of_rate(rounds: list[dict], learnt: dict) -> dict:
    def median(of: Callable[[dict], float | None]) -> float | None:
        values = [value for each in rounds if (value := of(each)) is not None]
        return round(statistics.median(values), 4) if values else None

    def step(method: str, of: Callable[[str, list[float]], float] = step_seconds) -> float | None:
        return median(lambda each: of(method, each[method]) if each.get(method) else None)

    def expected(method: str) -> float | None:
        return median(lambda each: each.get("pilot", {}).get("predicted", {}).get(method))

    seconds = {method: measured for method in METHODS if (measured := step(method)) is not None}
    methods = {}
    for method in seconds:
        steps = LEAST if method == "alone" else learnt.get(method, {}).get("steps")
        longer = TERMS["together"] * (step(method, first_seconds) - seconds[method]) if of_islands(method) else 0.0
        methods[method] = of_method(seconds, method, steps, longer, expected(method))
    taken = [each["pilot"]["auto"] for each in rounds if "pilot" in each]
    return {"methods": methods, "fastest": fastest(methods), "auto": [of_auto(seconds, method) for method in taken]}


def of_method(seconds: dict, method: str, steps: float | None, longer: float, predicted: float | None) -> dict:
    """steps: that it takes to DDP's loss, if it gets there; longer: seconds that the first ones take more in all."""
    total = steps and steps * seconds[method] + longer

    def over(other: str) -> float | None:
        return round(total / (LEAST * seconds[other]), 4) if total and other in seconds else None

    found = {"step": seconds[method], "steps": steps, "seconds": total and round(total, 1)}
    found |= {"over_ddp": over("ddp"), "over_alone": over("alone")}
    error = predicted and round(predicted / seconds[method] - 1, 3)
    return found | ({"predicted": predicted, "error": error} if predicted else {})


def fastest(methods: dict) -> str | None:
    """To DDP's loss, of samestep's."""
    known = {name: each["seconds"] for name, each in methods.items() if name in SAMESTEP and each["seconds"]}
    return min(known, key=known.get) if known else None


def of_auto(seconds: dict, taken: str) -> dict:
    """What a pilot takes, and how its measured step compares with the best of those that it may take, and of all."""
    known = [each for name, each in seconds.items() if name in SAMESTEP and not name.startswith("streaming")]
    every = [each for name, each in seconds.items() if name in SAMESTEP]
    if taken not in seconds:
        return {"takes": taken}
    mine = seconds[taken]
    return {"takes": taken, "over_best": round(mine / min(known), 3), "over_all": round(mine / min(every), 3)}


if __name__ == "__main__":
    main()
