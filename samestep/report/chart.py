"""From numbers to the lines of a chart: columns, scales, paths of SVG. Pure geometry, in a plot of WIDTH x HEIGHT.

A plot is stretched to the page by the browser, so its units are no pixels. A run of any length is drawn in at most
COLUMNS columns, each with the lowest, the highest and the mean value of its steps: no peak is lost, and a page of
100,000 steps is no larger than one of 600.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from samestep.report.read import Numbers, Spent

COLUMNS = 600
WIDTH, HEIGHT = 1000, 100
TICKS = 5  # on an axis, about
SMALLEST = 1e-300  # of a step between ticks: smaller ones have no logarithm
DECADES = 2.0  # positive values that span more are drawn on a logarithmic axis
USUAL, TOWER = 0.9, 3.0  # share of the values that are usual, and times their largest that towers above all others
HEADROOM = 0.06  # of the height, above and below the line

Point = tuple[float, float]


class Column(NamedTuple):
    """Of the steps of a column; None where none of them has a value."""

    low: float | None
    high: float | None
    mean: float | None


@dataclass(frozen=True)
class Scale:
    """Values between `low` and `high`; with `log` these are decimal logarithms, and so is what is between them."""

    low: float
    high: float
    log: bool = False

    def y(self, value: float) -> float:
        at = math.log10(max(value, 1e-300)) if self.log else value
        return HEIGHT * (1 - (at - self.low) / (self.high - self.low))


def groups(steps: Sequence[int], most: int = COLUMNS) -> list[range]:
    """The places in `steps` that share a column, in order."""
    count = min(most, len(steps))
    cuts = [round(at * len(steps) / count) for at in range(count + 1)] if count else [0]
    return [range(start, stop) for start, stop in pairwise(cuts)]


def columns(values: Numbers, places: Sequence[range]) -> list[Column]:
    return [_column([v for v in values[at.start : at.stop] if v is not None]) for at in places]


def _column(found: Sequence[float]) -> Column:
    return Column(min(found), max(found), sum(found) / len(found)) if found else Column(None, None, None)


def capped(values: Sequence[float]) -> list[float]:
    """Without those that tower above all others, and would leave these no height."""
    usual = sorted(values)[: max(1, math.ceil(USUAL * len(values)))]
    return [value for value in values if value <= TOWER * usual[-1]] if usual else []


def scale(values: Iterable[float], zero: bool = False) -> Scale:
    """For the values of a plot. zero: whether the axis begins there."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if not zero and low > 0 and high / low > 10**DECADES:
        return _padded(math.log10(low), math.log10(high), log=True)
    return Scale(0.0, high * (1 + HEADROOM) or 1.0) if zero else _padded(low, high)


def _padded(low: float, high: float, log: bool = False) -> Scale:
    room = (high - low) * HEADROOM or abs(high) * HEADROOM or 1.0
    return Scale(low - room, high + room, log)


def ticks(found: Scale) -> list[float]:
    """Round values inside the scale, ascending."""
    if found.log:
        powers = range(math.ceil(found.low), math.floor(found.high) + 1)
        return [10.0**power for power in powers][:: max(1, -(-len(powers) // TICKS))]
    step = _round_up(max((found.high - found.low) / TICKS, SMALLEST))
    first = math.ceil(found.low / step)
    return [at * step for at in range(first, math.floor(found.high / step) + 1)]


def _round_up(step: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * times for times in (1, 2, 5, 10) if step <= power * times * (1 + 1e-9))


def across(first: int, last: int) -> Callable[[float], float]:
    """Step -> x."""
    return lambda step: WIDTH * (step - first) / max(1, last - first)


def line(points: Iterable[Point | None]) -> str:
    """A path through the points; None lifts the pen. A point that stands alone is drawn as a dot."""
    parts: list[str] = []
    up = True
    for point in points:
        if point is not None:
            x, y = _at(point)
            parts.append(f"M{x} {y}h0L" if up else f"{x} {y}")
            up = False
        elif not up:
            up = True
            parts[-1] = parts[-1].removesuffix("L")
    return " ".join(parts).removesuffix("L").replace("L ", "L").replace(" M", "M")


def band(points: Sequence[tuple[float, float, float] | None]) -> str:
    """The area between the lower and the upper y at each x; None ends one area, and the next begins after it."""
    parts: list[str] = []
    run: list[tuple[float, float, float]] = []
    for point in [*points, None]:
        if point is not None:
            run.append(point)
        elif run:
            there = " ".join("{} {}".format(*_at((x, low))) for x, low, _ in run)
            back = " ".join("{} {}".format(*_at((x, high))) for x, _, high in reversed(run))
            parts.append(f"M{there}L{back}Z")
            run = []
    return "".join(parts)


def _at(point: Point) -> tuple[str, str]:
    return f"{point[0]:.1f}".removesuffix(".0"), f"{min(max(point[1], -HEIGHT), 2 * HEIGHT):.1f}".removesuffix(".0")


# What replicas tell now and then, spread over the columns


def phases(spent: Sequence[Spent], ends: Sequence[int]) -> list[dict[str, float]]:
    """Seconds a step by phase, the mean of the replicas that tell of a column. ends: the last step of each."""
    mine = _by_replica(spent)
    return [_mean([_rate(one, start, end) for one in mine]) for start, end in zip([0, *ends], ends, strict=False)]


def memories(spent: Sequence[Spent], ends: Sequence[int]) -> dict[str, Numbers]:
    """By replica the bytes that it has at the end of each column; None where it does not tell."""
    found: dict[str, Numbers] = {}
    for one in _by_replica(spent):
        places = [bisect_left(one, end, key=lambda each: each.step) for end in ends]
        found[one[0].replica] = [
            one[at].memory if at < len(one) and one[at].step - one[at].steps < end else None
            for at, end in zip(places, ends, strict=True)
        ]
    return found


def _by_replica(spent: Sequence[Spent]) -> list[list[Spent]]:
    found: dict[str, list[Spent]] = {}
    for each in sorted(spent, key=lambda each: each.step):
        if each.steps:
            found.setdefault(each.replica, []).append(each)
    return [found[name] for name in sorted(found)]


def _rate(one: Sequence[Spent], start: int, end: int) -> dict[str, float]:
    """Seconds a step by phase in the steps after `start` up to `end`, as far as one replica tells of them."""
    sums: dict[str, float] = {}
    covered = 0
    for each in one[bisect_left(one, start + 1, key=lambda each: each.step) :]:
        first = each.step - each.steps
        if first >= end:
            break
        shared = min(each.step, end) - max(first, start)
        covered += shared
        for phase, seconds in each.seconds.items():
            sums[phase] = sums.get(phase, 0.0) + seconds * shared / each.steps
    return {phase: seconds / covered for phase, seconds in sums.items()} if covered else {}


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    known = [each for each in found if each]
    names = {phase for each in known for phase in each}
    return {phase: sum(each.get(phase, 0.0) for each in known) / len(known) for phase in sorted(names)}
