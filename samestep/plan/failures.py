"""What goes wrong in a run, when, and what it costs on the average. Pure functions of numbers and of a seed.

Times are seconds, rates are a device and a day. Failures, preemptions and the beginnings of slow spells are Poisson
processes: they come one by one, whatever came before, as unplanned stops of large clusters nearly do.
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from samestep.errors import RecipeError
from samestep.sync import tree

DAY = 86_400.0
HOUR = 3600.0
LLAMA3 = 419 / (54 * 16_384)  # unplanned stops: 419 in 54 days on 16,384 H100, Llama 3, arXiv 2407.21783, section 3.3.4
TERMS = 10  # of a Poisson distribution: what is beyond its mean and so many standard deviations does not count
NOTHING = 1e-6  # a probability that does not count


@dataclass(frozen=True)
class Hazards:
    """failures, preemptions, slowdowns: of a device and a day. together: replicas that lie side by side, as on a host,
    and are lost at once. replace: mean of the exponential time until another machine is there and has started. slow:
    how many times as long a slow replica takes; slow_seconds: mean of the exponential time that it does.
    """

    failures: float = LLAMA3
    preemptions: float = 0.0
    slowdowns: float = 0.0
    together: int = 1
    replace: float = 600.0
    slow: float = 1.5
    slow_seconds: float = 1800.0


class Blow(NamedTuple):
    """places: of the replicas hit. seconds: until it is replaced, or is as fast as the others again."""

    at: float
    kind: str  # failure, preemption or slowdown
    places: range
    seconds: float


def blows(hazards: Hazards, places: int, devices: int, seconds: float, seed: int) -> list[Blow]:
    """All that happens to a run, in the order of time. places: for replicas, of `devices` each.

    It is drawn beforehand and does not depend on what the run does about it, so that policies meet the same.
    """
    draw = random.Random(seed)
    rates = {"failure": hazards.failures, "preemption": hazards.preemptions, "slowdown": hazards.slowdowns}
    found = []
    for kind, rate in rates.items():
        wide = 1 if kind == "slowdown" else hazards.together
        mean = hazards.slow_seconds if kind == "slowdown" else hazards.replace
        for at in _arrivals(draw, rate * devices * places / DAY, seconds):
            first = wide * (draw.randrange(places) // wide)
            hit = range(first, min(first + wide, places))
            found.append(Blow(at, kind, hit, draw.expovariate(1 / mean) if mean else 0.0))
    return sorted(found)


def _arrivals(draw: random.Random, rate: float, seconds: float) -> list[float]:
    found, at = [], draw.expovariate(rate) if rate else math.inf
    while at < seconds:
        found.append(at)
        at += draw.expovariate(rate)
    return found


def prices(mean: float, swing: float, hours: int, seed: int) -> list[float]:
    """Dollars a device-hour, hour by hour: the logarithm is an autoregression that forgets within a day, with the
    standard deviation `swing`; 0 is a fixed price.
    """
    draw, kept, level = random.Random(seed), math.exp(-1 / 24), 0.0
    found = []
    for _ in range(hours):
        found.append(mean * math.exp(level - swing * swing / 2))
        level = kept * level + draw.gauss(0, swing) * math.sqrt(1 - kept * kept)
    return found


def save_every(save: float, mtbf: float) -> float:
    """Seconds of work between two saves that lose the least. save: seconds that each holds the run up.

    Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, 2006, equation 37; its first
    term is Young's of 1974.
    """
    if math.isinf(mtbf) or save >= 2 * mtbf:
        return mtbf
    ratio = save / (2 * mtbf)
    return math.sqrt(2 * save * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


@lru_cache(maxsize=4096)
def longest(lanes: int, replicas: int) -> int:
    """Lanes of the replica that has most of them, on whom the others wait."""
    return max(len(span) for span in tree.spans(lanes, replicas))


@dataclass(frozen=True)
class Goodput:
    """Steps against those of `replicas` without failures or saves, by policy. Above 1 only where spares compute, too.

    mtbf: seconds between two failures of the whole. every: seconds of work between two saves under `restart`.
    """

    restart: float
    survivors: float
    mtbf: float
    every: float


def goodput(
    replicas: int,
    step_seconds: float,
    failures_per_device_day: float,
    save_seconds: float,
    restart_seconds: float,
    *,
    devices: int = 1,
    detect_seconds: float = 10.0,
    form_seconds: float = 10.0,
    join_seconds: float = 30.0,
    replace_seconds: float = 600.0,
    spares: int = 0,
    lanes: int | None = None,
    survivors_save_every: float = DAY,
) -> Goodput:
    """What is to be expected of both policies, in closed form.

    restart: all stop, wait for a replacement unless a spare is there, and go on from the newest checkpoint (Daly 2006,
    equation 20). survivors: the same formula, for they go on from a checkpoint that each step makes at no cost; they
    lack those that are not yet replaced, whose lanes they carry, and wait for each that joins. lanes: default 16 a
    replica. Raises RecipeError for numbers below 0.
    """
    numbers = (step_seconds, failures_per_device_day, save_seconds, restart_seconds, detect_seconds, replace_seconds)
    if min(numbers) < 0 or step_seconds == 0 or replicas < 1:
        raise RecipeError("goodput needs at least one replica, a step that takes time, and no number below 0")
    rate = failures_per_device_day * devices * replicas / DAY
    mtbf = 1 / rate if rate else math.inf
    every = save_every(save_seconds, mtbf)
    missing = rate * replace_seconds
    wait = replace_seconds / (1 + spares) * (1 - sum(_poisson(missing, k) for k in range(spares)))
    if not rate:
        return Goodput(1.0, 1 / (1 + save_seconds / survivors_save_every), mtbf, every)
    restart = every / _expected(every + save_seconds, detect_seconds + wait + restart_seconds, mtbf)
    slower = _slower(lanes or 16 * replicas, replicas, spares, missing)
    a_step = _expected(step_seconds * slower, detect_seconds + form_seconds, mtbf)
    others = rate * (form_seconds + join_seconds) + save_seconds / survivors_save_every
    return Goodput(restart, step_seconds / (a_step * (1 + others)), mtbf, every)


def _slower(lanes: int, replicas: int, spares: int, missing: float) -> float:
    """How many times as long a step takes as on `replicas`, on the average, where `missing` lack on the average."""
    there = min(replicas + spares, lanes)
    most = min(there, math.ceil(missing + TERMS * (1 + math.sqrt(missing))))
    weights = [_poisson(missing, k) for k in range(most)]
    found = sum(weight * longest(lanes, there - k) for k, weight in enumerate(weights) if weight > NOTHING)
    return found / sum(weight for weight in weights if weight > NOTHING) / longest(lanes, replicas)


def _expected(work: float, again: float, mtbf: float) -> float:
    """Seconds until `work` was done without a failure; after each it begins anew, `again` seconds later."""
    return mtbf * math.exp(again / mtbf) * math.expm1(work / mtbf) if work + again < 300 * mtbf else math.inf


def _poisson(mean: float, k: int) -> float:
    return math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) if mean else float(k == 0)
