"""A run in simulated time, whatever the policy: a heap of events, and books in which all device time is entered.

Steps between two events are counted and not gone through, so a month costs as many events as things happen in it.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from samestep.errors import RecipeError
from samestep.plan.failures import DAY, HOUR, Blow, Hazards, longest

WORKING, ALWAYS = "working", -1
IDLE = ("uneven", "slow", "saving", "detecting", "forming", "waiting", "restarting", "joining", "ended")
CAUSES = ("useful", "lost", *IDLE, "down")


@dataclass(frozen=True)
class Setup:
    """replicas: that `step_seconds` are meant for, of `devices` each. spares: more of them; survivors compute with all,
    under `restart` they stand by. lanes: None for 16 a replica. exchange: seconds of a step that are not computing.
    save: seconds that a save holds all up; save_every: seconds of work between two, None for the best of each policy.
    restart: until all compute again from a checkpoint. form: until survivors have their connections again, and have
    moved what has no second holder; join: what a joiner makes all others wait for, besides. copies: as in Terms.
    deaths: as in Terms; None for no limit.
    """

    replicas: int
    step_seconds: float
    days: float = 30.0
    devices: int = 1
    spares: int = 0
    lanes: int | None = None
    exchange: float = 0.0
    save: float = 30.0
    save_every: float | None = None
    detect: float = 10.0
    restart: float = 300.0
    form: float = 10.0
    join: float = 30.0
    copies: int | None = 2
    deaths: int | None = None
    hazards: Hazards = field(default_factory=Hazards)

    def __post_init__(self) -> None:
        if not (self.replicas >= 1 and self.devices >= 1 and self.spares >= 0 and self.days > 0):
            raise RecipeError("a simulation needs at least one replica of one device, and some time")
        if not 0 <= self.exchange < self.step_seconds:
            raise RecipeError(f"a step of {self.step_seconds:g} s cannot hold an exchange of {self.exchange:g} s")
        if self.shared < self.places:
            raise RecipeError(f"{self.shared} lanes are too few for {self.places} replicas; give more lanes")
        if min(self.save, self.detect, self.restart, self.form, self.join) < 0:
            raise RecipeError("seconds cannot be below 0")

    @property
    def shared(self) -> int:
        """Lanes of a step."""
        return self.lanes or 16 * self.replicas

    @property
    def places(self) -> int:
        return self.replicas + self.spares

    @property
    def seconds(self) -> float:
        return self.days * DAY

    @property
    def lane_seconds(self) -> float:
        return (self.step_seconds - self.exchange) / longest(self.shared, self.replicas)


class Pace(NamedTuple):
    """Seconds of a step, and what each second of a replica that takes part goes into, in replica-seconds a step."""

    seconds: float
    useful: float
    slow: float
    uneven: float


def pace(setup: Setup, members: int, slow: float = 1.0) -> Pace:
    """slow: of the slowest member, against the others. Useful: to compute each lane once, and the exchange."""
    most = longest(setup.shared, members) * setup.lane_seconds
    useful = setup.shared * setup.lane_seconds + min(members, setup.replicas) * setup.exchange
    waited = members * most * (slow - 1)
    seconds = most * slow + setup.exchange
    return Pace(seconds, useful, waited, members * seconds - useful - waited)


class World(ABC):
    """members: replicas of the generation that live. idle: those that live outside of it. phase: what the members do.

    A policy says what follows in `lose` and `leave`. Time in the books is in replica-seconds.
    """

    def __init__(self, setup: Setup, blows: Sequence[Blow], price: Sequence[float], every: float) -> None:
        self.setup, self.price = setup, price
        self.every = max(1, round(every / setup.step_seconds)) if math.isfinite(every) else math.inf
        self.now, self.since, self.pace = 0.0, 0.0, pace(setup, setup.replicas)
        self.queue: list[tuple[float, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = self.epoch = self.events = self.said = 0
        self.hits = self.restores = self.generations = 0
        self.members = self.idle = 0
        self.phase, self.gathering = "forming", False
        self.step = self.saved = 0
        self.books: defaultdict[str, float] = defaultdict(float)
        self.unsaved: defaultdict[str, float] = defaultdict(float)  # of steps since the newest checkpoint
        self.cost = 0.0
        self.slow: set[int] = set()  # places
        self.curve = [(0.0, 0)]
        self.stretches: list[tuple[int, int, int]] = []  # committed steps first .. stop - 1, and by how many replicas
        self.marks: list[float] = []
        for blow in blows:
            self.after(blow.at, self.hit, blow, epoch=ALWAYS)

    # Time

    def after(self, delay: float, call: Callable[..., None], *args: Any, epoch: int | None = None) -> None:
        """epoch: the one that the call is for, by default this; ALWAYS: whatever happens until then."""
        self.order += 1
        bound = self.epoch if epoch is None else epoch
        heapq.heappush(self.queue, (self.now + delay, self.order, bound, call, args))

    def run(self) -> None:
        end = self.setup.seconds
        while self.queue and self.queue[0][0] < end:
            at, _, epoch, call, args = heapq.heappop(self.queue)
            if epoch in (ALWAYS, self.epoch):
                self.advance(at)
                self.events += 1
                call(*args)
        self.advance(end)
        self.close()
        self.keep()

    def advance(self, to: float) -> None:
        down = self.setup.places - self.members - self.idle
        passed = to - self.now
        self.books["down"] += down * passed
        self.books["joining"] += self.idle * passed
        if self.phase != WORKING:
            self.books[self.phase] += self.members * passed
        self.cost += (self.setup.places - down) * self.setup.devices * self.paid(to)
        self.now = to

    def paid(self, to: float) -> float:
        """Dollars of one device from now on; the last price holds for all time after it."""
        dollars, at = 0.0, self.now
        while at < to and self.price:
            hour = min(int(at / HOUR), len(self.price) - 1)
            until = to if hour == len(self.price) - 1 else min(to, (hour + 1) * HOUR)
            dollars += self.price[hour] * (until - at) / HOUR
            at = until
        return dollars

    def enter(self, phase: str) -> None:
        """Members do something else from now on, and what was to happen otherwise does not."""
        self.phase = phase
        self.epoch += 1

    # Steps

    def begin(self) -> None:
        """The members compute, to the next save if nothing happens."""
        self.enter(WORKING)
        self.since = self.now
        slow = any(self.takes_part(place) for place in self.slow)
        self.pace = pace(self.setup, self.members, self.setup.hazards.slow if slow else 1.0)
        steps = 1 if self.gathering else max(1, self.every - (self.step - self.saved))
        self.after(steps * self.pace.seconds, self.reached, steps)

    def cut(self) -> None:
        """The members stop and look after the step that they are in."""
        if self.phase == WORKING:
            steps = int((self.now - self.since) / self.pace.seconds) + 1
            self.epoch += 1
            self.after(self.since + steps * self.pace.seconds - self.now, self.reached, steps)

    def reached(self, steps: int) -> None:
        self.close(steps)
        if self.gathering:
            self.leave()
        elif self.step - self.saved >= self.every:
            self.enter("saving")
            self.after(self.setup.save, self.has_saved)
        else:
            self.begin()

    def has_saved(self) -> None:
        self.saved = self.step
        self.keep()
        self.begin()

    def close(self, steps: int | None = None) -> None:
        """Enter what was computed. steps: committed; None: as many as there was time for, and the open one is lost."""
        if self.phase != WORKING:
            return
        spent = self.now - self.since
        done = int(spent / self.pace.seconds) if steps is None else steps
        for cause in ("useful", "slow", "uneven"):
            self.unsaved[cause] += done * getattr(self.pace, cause)
        self.books["lost"] += (spent - done * self.pace.seconds) * self.members
        self.stretches.append((self.step, self.step + done, self.members))
        self.step += done
        self.phase = "forming"
        self.curve.append((self.now, self.step))

    def keep(self) -> None:
        for cause, seconds in self.unsaved.items():
            self.books[cause] += seconds
        self.unsaved.clear()

    def roll_back(self) -> None:
        self.books["lost"] += sum(self.unsaved.values())
        self.unsaved.clear()
        self.restores += 1
        self.step = self.saved
        while self.stretches and self.stretches[-1][1] > self.saved:
            first, _, members = self.stretches.pop()
            self.stretches += [(first, self.saved, members)] if first < self.saved else []
        self.curve.append((self.now, self.step))

    # What happens

    def hit(self, blow: Blow) -> None:
        living = [place for place in blow.places if self.lives(place)]
        if not living:
            return
        if blow.kind == "slowdown":
            self.slow.update(living)
            self.after(blow.seconds, self.recovered, living, epoch=ALWAYS)
            self.cut()
            return
        self.hits += 1
        self.marks.append(self.now)
        self.slow.difference_update(living)
        self.lose(living, blow.seconds)

    def recovered(self, places: list[int]) -> None:
        self.slow.difference_update(places)
        self.cut()

    # What a policy says

    @abstractmethod
    def lives(self, place: int) -> bool:
        """Whether a place has a replica that can be lost."""

    @abstractmethod
    def takes_part(self, place: int) -> bool:
        """Whether its replica computes."""

    @abstractmethod
    def lose(self, places: list[int], seconds: float) -> None:
        """These places have lost their replicas; each has another one after so many seconds."""

    @abstractmethod
    def leave(self) -> None:
        """The step that is over was the last of these members: others are to be let in."""
