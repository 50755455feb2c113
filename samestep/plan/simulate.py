"""A whole run under failures, in simulated time: goodput, lost work and cost of each policy, over many seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from samestep.plan.failures import DAY, HOUR, blows, prices, save_every
from samestep.plan.restart import Restart
from samestep.plan.survivors import Survivors
from samestep.plan.world import CAUSES, Setup, World

POLICIES: dict[str, Callable[..., World]] = {"restart": Restart, "survivors": Survivors}
QUANTILES = (0.05, 0.5, 0.95)
EXACT = 1e-9  # of all time, to which the books have to add up


@dataclass(frozen=True)
class Price:
    """Dollars a device-hour: the mean of a series drawn by the seed, and the standard deviation of its logarithm; or
    the series itself, hour by hour.
    """

    mean: float = 0.0
    swing: float = 0.0
    series: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """One run. goodput: the share of all device time that went into computing committed steps. progress: steps against
    those of a run without failures or saves. hours: device-hours by cause, which add up to all there are. lost: steps
    that were computed and thrown away, as device-hours. blows: that took a replica. generations: formed under
    `survivors`. restores: times that all went back to a checkpoint. events: of the simulation; said: of replicas to the
    production membership. curve: seconds and committed steps. marks: seconds, of blows.
    """

    policy: str
    seed: int
    steps: int
    goodput: float
    progress: float
    hours: dict[str, float]
    dollars: float
    blows: int
    generations: int
    restores: int
    events: int
    said: int
    ended: bool
    curve: list[tuple[float, int]]
    marks: list[float]


def simulate(setup: Setup, policy: str, seed: int, price: Price | None = None) -> Outcome:
    """The same seed gives all policies the same failures and prices, and the same outcome each time."""
    world = POLICIES[policy](setup, *drawn(setup, seed, price or Price()), every(setup, policy))
    world.run()
    return outcome(world, policy, seed)


def drawn(setup: Setup, seed: int, price: Price) -> tuple[Sequence[object], Sequence[float]]:
    happens = blows(setup.hazards, setup.places, setup.devices, setup.seconds, seed)
    series = price.series or prices(price.mean, price.swing, math.ceil(setup.days * 24), seed)
    return happens, series


def every(setup: Setup, policy: str) -> float:
    """Seconds of work between two saves. Survivors need a checkpoint only where no holder of some state is left: where
    a failure takes all copies with it, or others in the time until the state has a second holder again.
    """
    if setup.save_every is not None:
        return setup.save_every
    hazards = setup.hazards
    rate = (hazards.failures + hazards.preemptions) * setup.devices * setup.places / DAY
    if policy == "survivors" and (setup.copies is None or setup.copies > hazards.together):
        window = setup.detect + setup.form + setup.join
        neighbours = 2 * ((setup.copies or setup.places) - 1) * hazards.together
        rate *= min(1.0, rate * window * neighbours / setup.places)
        return min(save_every(setup.save, 1 / rate), 24 * HOUR) if rate else 24 * HOUR
    return save_every(setup.save, 1 / rate) if rate else math.inf


def outcome(world: World, policy: str, seed: int) -> Outcome:
    setup = world.setup
    hours = {cause: world.books[cause] * setup.devices / HOUR for cause in CAUSES}
    total = setup.places * setup.devices * setup.seconds / HOUR
    if not math.isclose(math.fsum(hours.values()), total, rel_tol=EXACT):
        raise AssertionError(f"{math.fsum(hours.values())} device-hours are in the books of {total}")
    return Outcome(
        policy,
        seed,
        world.step,
        hours["useful"] / total,
        world.step * setup.step_seconds / setup.seconds,
        hours,
        world.cost,
        world.hits,
        world.generations,
        world.restores,
        world.events,
        world.said,
        world.phase == "ended",
        world.curve,
        world.marks,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Between two values on the line between them."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Mapping[str, float]]:
    """By figure the 5th, 50th and 95th percentile over the seeds, of one policy. dollars_a_step: None known is 0."""
    figures: dict[str, Callable[[Outcome], float]] = {
        "goodput": lambda found: found.goodput,
        "progress": lambda found: found.progress,
        "steps": lambda found: found.steps,
        "lost_hours": lambda found: found.hours["lost"],
        "dollars": lambda found: found.dollars,
        "dollars_a_step": lambda found: found.dollars / found.steps if found.steps else math.inf,
        "blows": lambda found: found.blows,
        "restores": lambda found: found.restores,
    }
    return {
        name: {f"p{round(100 * share)}": quantile([figure(found) for found in outcomes], share) for share in QUANTILES}
        for name, figure in figures.items()
    }
