"""The planner against published runs: how far its tokens a second and its peak memory are off, and where.

    python benchmarks/planner.py RUNS.csv [--json] [--rows]

RUNS.csv has the columns of the published runs that the constants were fitted to; an empty cell is an unknown that is
filled in as samestep/plan/published.py says. A row that cannot be used is counted with the reason.

    cold           no run of that source seen: the constants are those that scripts/fit_planner found without it
                   (results/planner_held_out.json); of a source that it did not have, those of constants.yaml
    after_pilot    the first run of each source, GPU and precision is seen, the others are predicted
    after_any      every run of such a group in turn is the pilot of the others: no luck of the first
    constant_mfu   one model FLOP utilisation, that of the same first run, for the others: the simplest planner
    peak_memory    of rows with a published peak; called_unfit: share of all rows, all of which did run, called too big

What is held out is constants only: what setting.py knows of frameworks was written by someone who had seen the file.

Errors are absolute percentage errors as fractions: |predicted / published - 1|.
"""

import argparse
import csv
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from samestep.plan import memory, observed, steptime
from samestep.plan.constants import Constants, constants
from samestep.plan.published import Run, runs

HELD_OUT = Path(__file__).with_name("results") / "planner_held_out.json"

Pair = tuple[float, float]  # predicted, published


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, metavar="RUNS.csv")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object and nothing else")
    parser.add_argument("--rows", action="store_true", help="print each run as well")
    arguments = parser.parse_args()
    with arguments.runs.open(newline="", encoding="utf-8-sig") as file:
        found = runs(list(csv.DictReader(file)))
    usable = [one for one in found if isinstance(one, Run)]
    result = report(usable, Counter(one for one in found if isinstance(one, str)))
    if arguments.as_json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join([*lines(result), *(rows(usable) if arguments.rows else [])]))


def report(usable: Sequence[Run], unused: Counter[str]) -> dict[str, Any]:
    fast = [one for one in usable if one.speed]
    cold = [(predicted(one), one.speed or 0.0) for one in fast]
    held = [one for one in usable if one.held]
    return {
        "rows": len(fast),
        "unused": dict(unused.most_common()),
        "cold": errors(cold) | {"spearman": spearman(cold)},
        "after_pilot": errors(after(fast, first=True)),
        "after_any": errors(after(fast, first=False)),
        "constant_mfu": errors(after_mfu(fast)),
        "peak_memory": memory_errors(held, usable),
        "by_source": parts(fast, lambda one: one.key[0]),
        "by_device": parts(fast, lambda one: one.device.name),
        "by_strategy": parts(fast, lambda one: one.row.get("strategy") or "not said"),
    }


def known(one: Run) -> Constants:
    """The constants that have seen nothing of this run's source."""
    table = json.loads(HELD_OUT.read_text()) if HELD_OUT.exists() else {}
    return Constants(**table[one.key[0]]["constants"]) if one.key[0] in table else constants()


def predicted(one: Run) -> float:
    return steptime.tokens_per_second(one.device, one.facts, one.training, known(one))


def groups(fast: Sequence[Run]) -> list[list[Run]]:
    """Runs of one source, GPU and precision, where there are several."""
    found: defaultdict[tuple[str, ...], list[Run]] = defaultdict(list)
    for one in fast:
        found[one.key].append(one)
    return [group for group in found.values() if len(group) > 1]


def after(fast: Sequence[Run], first: bool) -> list[Pair]:
    pairs = []
    for group in groups(fast):
        for pilot in group[:1] if first else group:
            slower = observed.slowness(*shape(pilot), pilot.training.tokens / (pilot.speed or 1.0), known(pilot))
            pairs += [(piloted(one, slower), one.speed or 0.0) for one in group if one is not pilot]
    return pairs


def shape(one: Run) -> tuple[Any, Any, Any]:
    return one.device, one.facts, one.training


def piloted(one: Run, slower: float) -> float:
    return one.training.tokens / observed.seconds(*shape(one), slower, known(one))


def after_mfu(fast: Sequence[Run]) -> list[Pair]:
    """tokens/s of each but the first of a group at the first one's utilisation."""
    pairs = []
    for pilot, *others in groups(fast):
        share = steptime.utilisation(*shape(pilot), pilot.speed or 0.0)
        pairs += [(share / steptime.utilisation(*shape(one), 1.0), one.speed or 0.0) for one in others]
    return pairs


def errors(pairs: Iterable[Pair]) -> dict[str, float | None]:
    found = [abs(guess / truth - 1) for guess, truth in pairs]
    if not found:
        return {"median_ape": None, "mean_ape": None}
    return {"median_ape": round(statistics.median(found), 4), "mean_ape": round(statistics.fmean(found), 4)}


def spearman(pairs: Sequence[Pair]) -> float | None:
    """Rank correlation (Spearman 1904); equal values share the mean of their ranks."""
    if len(pairs) < 3:
        return None
    return round(statistics.correlation(*(ranks([pair[side] for pair in pairs]) for side in (0, 1))), 4)


def ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(ordered)))}
    often = Counter(ordered)
    return [first[value] + (often[value] - 1) / 2 for value in values]


def memory_errors(held: Sequence[Run], usable: Sequence[Run]) -> dict[str, Any]:
    pairs = [(sum(memory.peak(one.facts, one.training).values()), one.held or 0.0) for one in held]
    unfit = [one for one in usable if not memory.fits(one.device, one.facts, one.training)]
    return {
        "rows": len(held),
        **errors(pairs),
        "by_source": {
            source: {"rows": len(mine), **errors(mine)}
            for source in dict.fromkeys(one.key[0] for one in held)
            if (mine := [pair for pair, one in zip(pairs, held, strict=True) if one.key[0] == source])
        },
        "called_unfit": {"rows": len(unfit), "of": len(usable), "share": round(len(unfit) / max(1, len(usable)), 4)},
        "unfit": [f"{one.key[0]}: {one.row.get('model')} on {one.training.gpus} {one.row.get('gpu')}" for one in unfit],
    }


def parts(fast: Sequence[Run], kind: Any) -> dict[str, Any]:
    found = {}
    for name in dict.fromkeys(kind(one) for one in fast):
        mine = [one for one in fast if kind(one) == name]
        pairs = [(predicted(one), one.speed or 0.0) for one in mine]
        ratios = [guess / truth for guess, truth in pairs]
        found[name] = {"rows": len(mine), **errors(pairs), "median_ratio": round(statistics.median(ratios), 3)}
        found[name]["after_pilot"] = errors(after(mine, first=True))
    return found


def lines(result: dict[str, Any]) -> list[str]:
    said = [f"{result['rows']} runs with tokens/s used"]
    said += [f"  {count:>4} not used: {reason}" for reason, count in result["unused"].items()]
    said += [f"{'':<28}{'median':>9}{'mean':>9}"]
    for name in ("cold", "after_pilot", "after_any", "constant_mfu", "peak_memory"):
        said.append(f"{name:<28}{percent(result[name]['median_ape'])}{percent(result[name]['mean_ape'])}")
    unfit = result["peak_memory"]["called_unfit"]
    said.append(f"rank correlation, cold: {result['cold']['spearman']}")
    said.append(f"peak memory: {result['peak_memory']['rows']} runs; called unfit: {unfit['rows']} of {unfit['of']}")
    said += [f"  {one}" for one in result["peak_memory"]["unfit"]]
    for kind in ("by_source", "by_device", "by_strategy"):
        said.append(f"{kind:<40}{'rows':>6}{'cold':>9}{'mean':>9}{'ratio':>8}{'piloted':>9}{'mean':>9}")
        for name, one in result[kind].items():
            numbers = f"{percent(one['median_ape'])}{percent(one['mean_ape'])}{one['median_ratio']:>8.2f}"
            pilot = f"{percent(one['after_pilot']['median_ape'])}{percent(one['after_pilot']['mean_ape'])}"
            said.append(f"  {name[:38]:<38}{one['rows']:>6}{numbers}{pilot}")
    return said


def rows(usable: Sequence[Run]) -> list[str]:
    """Each run with what the planner thinks of it."""
    said = []
    for one in usable:
        taken, t = steptime.step(*shape(one), known(one)), one.training
        most = ", ".join(
            f"{name} {share / sum(taken.values()):.0%}"
            for name, share in sorted(taken.items(), key=lambda part: -part[1])[:4]
        )
        ratio = f"{predicted(one) / one.speed:.2f}" if one.speed else "-"
        held = f"{sum(memory.peak(one.facts, t).values()) / one.held:.2f}" if one.held else "-"
        said.append(
            f"speed {ratio} memory {held} {one.row.get('model')} {t.micro_batch}x{t.context} x{t.accumulate} "
            f"{t.gpus} {one.device.name} {one.row.get('precision')} {t.kernels} {t.checkpointing}: {most}"
        )
    return said


def percent(share: float | None) -> str:
    return f"{'-' if share is None or math.isnan(share) else f'{share:.1%}':>9}"


if __name__ == "__main__":
    main()
