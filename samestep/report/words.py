"""Where the time of a run went, in sentences. Pure functions of numbers; what is too small to matter is not said."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from samestep.report.read import COMPUTE, History, Spent, replicas_at
from samestep.units import UNKNOWN, count, duration, rate, share, size

PARTS = ("forward", "backward", "exchange", "update", "data", "evaluate", "save")  # of a run's time, as they are shown
NAMES = {"evaluate": "evaluation", "save": "checkpoints", "data": "reading data"}
WAITS = 0.03  # share of a step, that the others wait for one replica, from which on it is named
MUCH = {"exchange": 0.25, "data": 0.1, "evaluate": 0.15, "save": 0.05}  # shares of the time that deserve advice
ADVICE = {
    "exchange": "samestep pilot RECIPE measures whether fewer bits (sync.wire) or islands (sync.strategy) would pay",
    "data": "longer rows that are packed, or a faster disk, would help",
    "evaluate": "a larger evaluate.every, or less held-out data, would give it back to training",
    "save": "steps had to wait for the disk; a larger recover.checkpoint_every, or a faster disk, would help",
}
FELL = 0.8  # of the median speed: a run whose last tenth is slower is told of
STALL, STALLED = 5, 0.03  # times a usual step, and the share of all time that such steps cost, that are told of
GREW = 1.2  # times the memory at a tenth of the run, and LEAK bytes: growth that is told of
LEAK = 100e6


@dataclass
class Totals:
    """Of one replica over the whole run. seconds: by phase. peak: bytes of memory. told: each of its accounts."""

    host: str = ""
    lanes: int = 0
    bytes_sent: int = 0
    peak: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    told: list[Spent] = field(default_factory=list)

    def add(self, spent: Spent) -> None:
        self.host, self.lanes, self.peak = spent.host, spent.lanes, max(self.peak, spent.peak)
        self.told += [spent] if spent.steps else []
        self.bytes_sent += spent.bytes_sent
        for phase, seconds in spent.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def a_step(self, phases: Sequence[str]) -> float:
        """Seconds of a usual one: the median of all accounts, so that a pause of the machine is nobody's fault."""
        return median([sum(each.seconds.get(p, 0.0) for p in phases) / each.steps for each in self.told] or [0.0])


def by_replica(spent: Iterable[Spent]) -> dict[str, Totals]:
    found: dict[str, Totals] = {}
    for each in spent:
        found.setdefault(each.replica, Totals()).add(each)
    return {name: found[name] for name in sorted(found)}


def steady(history: History) -> list[Spent]:
    """What was told of the longest stretch of steps that one set of replicas has shared: lanes are the same in it."""
    firsts = [first for first, _ in history.crews] or [1]
    spans = list(pairwise([*firsts, max([firsts[-1], *history.steps[-1:]]) + 1]))
    first, end = max(spans, key=lambda span: span[1] - span[0])
    return [each for each in history.spent if each.step - each.steps + 1 >= first and each.step < end]


def shares(totals: Mapping[str, Totals]) -> dict[str, float]:
    """Phase -> its share of the time of all replicas, without the time of their starts, as PARTS are ordered."""
    sums = {part: sum(each.seconds.get(part, 0.0) for each in totals.values()) for part in PARTS}
    whole = sum(sums.values())
    return {part: seconds / whole for part, seconds in sums.items() if seconds} if whole else {}


def words(history: History) -> list[str]:
    """The sentences of a report, the largest matter first."""
    totals = by_replica(history.spent)
    usual = median([seconds for seconds in history.series["seconds"] if seconds] or [0.0])
    crew = by_replica(steady(history))
    found = [_division(shares(totals)), waits(crew, usual), uneven(crew, usual), *_advice(shares(totals))]
    found += [stalls(history.steps, history.series["seconds"]), _again(history), _slower(history)]
    found += [*_grew(history.spent), _predicted(history), _scaling(speeds(history))]
    return [sentence for sentence in found if sentence]


def step_seconds(history: History) -> float | None:
    """The mean of all steps but the first, which also warms up; None before there are two."""
    known = [seconds for seconds in history.series["seconds"][1:] if seconds is not None]
    return sum(known) / len(known) if known else None


def waits(totals: Mapping[str, Totals], step: float | None) -> str | None:
    """Who holds the others up, by how much, and with what. step: seconds of one."""
    if len(totals) < 2 or not step:
        return None
    slow = max(totals, key=lambda name: totals[name].a_step(COMPUTE))
    others = [each for name, each in totals.items() if name != slow]
    late = totals[slow].a_step(COMPUTE) - max(each.a_step(COMPUTE) for each in others)
    if late / step < WAITS:
        return None
    phase, times = _worst(totals[slow], others)
    only = sum(each.host == totals[slow].host for each in totals.values()) == 1
    name = totals[slow].host if only and totals[slow].host else slow
    lanes = max(each.lanes for each in others)
    why = f"its {phase} phase is {times:.2g} x the others'" if math.isfinite(times) else f"its {phase} phase"
    if totals[slow].lanes > lanes:
        why = f"it carries {totals[slow].lanes} lanes, the others {lanes} at most"
    return f"{_percent(late / step)} of each step waits for {name}: {why}."


def uneven(totals: Mapping[str, Totals], step: float | None) -> str | None:
    """Where the lanes do not split evenly, what that costs those with the fewest. step: seconds of one."""
    lanes = [each.lanes for each in totals.values()]
    if not step or min(lanes, default=0) == max(lanes, default=0) or lanes.count(max(lanes)) == 1:
        return None
    few = [name for name, each in totals.items() if each.lanes == min(lanes)]
    busy = max(each.a_step(COMPUTE) for each in totals.values())
    idle = (busy - max(totals[name].a_step(COMPUTE) for name in few)) / step
    if idle < WAITS:
        return None
    carry = "carries" if len(few) == 1 else "carry"
    return (
        f"{sum(lanes)} lanes do not split evenly over {len(lanes)} replicas: {listed(few)} {carry} {min(lanes)} where "
        f"others carry {max(lanes)}, and could compute for another {_percent(idle)} of each step."
    )


def _worst(slow: Totals, others: Sequence[Totals]) -> tuple[str, float]:
    """The phase in which most time is lost, and how many times that of the others it is."""
    usual = {phase: median(each.a_step([phase]) for each in others) for phase in COMPUTE}
    phase = max(COMPUTE, key=lambda phase: slow.a_step([phase]) - usual[phase])
    return phase, slow.a_step([phase]) / usual[phase] if usual[phase] else math.inf


def _division(found: Mapping[str, float]) -> str | None:
    if not found:
        return None
    largest = sorted(found.items(), key=lambda part: -part[1])
    said = [f"{_percent(part)} {NAMES.get(phase, phase)}" for phase, part in largest if part >= 0.005]
    return f"Of the replicas' time {listed(said)}."


def _advice(found: Mapping[str, float]) -> list[str]:
    return [
        f"{_percent(found[phase])} of the time went into {NAMES.get(phase, phase)}: {ADVICE[phase]}."
        for phase, much in MUCH.items()
        if found.get(phase, 0.0) >= much
    ]


def stalls(steps: Sequence[int], seconds: Sequence[float | None]) -> str | None:
    """The steps that took far longer than a usual one, where they cost much. The first one also warms up."""
    known = [(took, step) for step, took in zip(steps[1:], seconds[1:], strict=True) if took is not None]
    usual = median([took for took, _ in known] or [0.0])
    long = [each for each in known if each[0] > STALL * usual]
    lost = sum(took - usual for took, _ in long)
    if not long or lost < STALLED * sum(took for took, _ in known):
        return None
    longest, step = max(long)
    many = "1 step" if len(long) == 1 else f"{len(long):,} steps"
    return (
        f"{many} took more than {STALL} x the usual {duration(usual)} and cost {duration(lost)} in all: "
        f"the longest was step {step:,} ({duration(longest)})."
    )


def _again(history: History) -> str | None:
    if not history.again:
        return None
    steps = "1 step was" if history.again == 1 else f"{history.again:,} steps were"
    return f"{steps} computed again after going back to a checkpoint: {duration(history.lost)} of work was lost."


def _slower(history: History) -> str | None:
    """A run whose speed falls is throttled, or shares its machine."""
    known = [speed for speed in history.series["tokens_per_second"] if speed is not None]
    if len(known) < 50:
        return None
    usual, last = median(known), median(known[-len(known) // 10 :])
    if last > FELL * usual:
        return None
    return f"The last tenth of the steps ran at {rate(last, 'tokens')}, {_percent(1 - last / usual)} below the median."


def _grew(spent: Sequence[Spent]) -> list[str]:
    found = []
    for name in dict.fromkeys(each.replica for each in spent):
        memory = [each.memory for each in spent if each.replica == name]
        early, last = memory[len(memory) // 10], memory[-1]
        if len(memory) >= 20 and last > GREW * early and last - early > LEAK:
            found.append(f"The memory of {name} grew from {size(early)} to {size(last)}: something may leak.")
    return found


def _predicted(history: History) -> str | None:
    measured, choice = step_seconds(history), history.piloted.get("choice")
    if not measured or not choice:
        return None
    off = choice["seconds"] / measured - 1
    side = "less" if off < 0 else "more"
    return f"A step took {duration(measured)}; the pilot had predicted {duration(choice['seconds'])}, " + (
        f"{_percent(abs(off))} {side}."
    )


def speeds(history: History) -> dict[int, float]:
    """Replicas -> tokens a second of a usual step that so many of them shared: the median, the first step left out."""
    found: dict[int, list[float]] = {}
    for step, speed in list(zip(history.steps, history.series["tokens_per_second"], strict=True))[1:]:
        if speed is not None:
            found.setdefault(replicas_at(history, step), []).append(speed)
    return {replicas: median(found[replicas]) for replicas in sorted(found)}


def _scaling(found: Mapping[int, float]) -> str | None:
    """Between the smallest and the largest number of replicas that the run has had."""
    if len(found) < 2:
        return None
    few, many = min(found), max(found)
    return f"{many} replicas ran at {rate(found[many], 'tokens')}, {few} at {rate(found[few], 'tokens')}: " + (
        f"{_percent(found[many] / found[few] / (many / few))} of linear scaling."
    )


def beside(name: str, ours: Mapping[int, float], theirs: Mapping[int, float]) -> str | None:
    """Our speed beside that of another run, each at its largest number of replicas."""
    if not ours or not theirs:
        return None
    mine, other = max(ours), max(theirs)
    times = ours[mine] / theirs[other]
    linear = "" if mine == other else f", {_percent(times / (mine / other))} of linear scaling"
    return f"{times:.2f} x the tokens/s of {name} on {mine} replicas where it had {other}{linear}."


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def number(value: float | None, digits: int = 4) -> str:
    """A loss or a rate, with so many digits that tell."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.{digits}f}" if 0.01 <= abs(value) < 1e4 else f"{value:.3g}"


def whole(value: float | None) -> str:
    return UNKNOWN if value is None else count(value)


def _percent(part: float) -> str:
    return f"{part:.0%}".replace("%", " %") if part >= 0.0995 else share(part)
