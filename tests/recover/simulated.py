"""A replica as membership sees it: a state that a mistake would spoil, and barriers that a death can cut in two.

The state is UNITS numbers of weights, which everybody holds, and as many of moments, which are divided into slices.
Each step makes every number a hash of its history, so a moment that is lost, mixed, applied twice or by some only ends
in a value that differs from the undisturbed run's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from samestep.recover.protocol import Finished, Form, Joined, Returned, Waiting

STEPS, UNITS = 10, 8
AGAIN = 5.0  # seconds after which somebody who waits says so again
NEW, IDLE, MOVING, STEPPING, LAST, GONE = "new", "idle", "moving", "stepping", "last", "gone"
Numbers = tuple[int, ...]


class Broken(AssertionError):
    """A law does not hold."""


def stepped(weights: Numbers, moment: int, unit: int, step: int) -> tuple[int, int]:
    moment = hash((moment, weights, unit, step))
    return hash((weights[unit], moment)), moment


@lru_cache
def undisturbed(step: int) -> tuple[Numbers, Numbers]:
    """Weights and moments after a step of a run without faults."""
    if step == 0:
        return tuple(range(UNITS)), (0,) * UNITS
    weights, moments = undisturbed(step - 1)
    new = [stepped(weights, moments[unit], unit, step) for unit in range(UNITS)]
    return tuple(w for w, _ in new), tuple(m for _, m in new)


def cut(rank: int, width: int) -> range:
    return range(UNITS * rank // width, UNITS * (rank + 1) // width)


@lru_cache
def units(rank: int, width: int, copies: int | None) -> frozenset[int]:
    """The moments that a rank holds."""
    deep = min(width, copies or width)
    return frozenset(unit for back in range(deep) for unit in cut((rank - back) % width, width))


@lru_cache(maxsize=4096)
def transfers(members: Numbers, before: Numbers, copies: int | None) -> tuple[dict[int, Numbers], ...]:
    """For each new rank, the moments that it gets from each member of `before` that is still there."""
    sources = [(replica, units(rank, len(before), copies)) for rank, replica in enumerate(before) if replica in members]
    plans = []
    for rank in range(len(members)):
        plan: dict[int, Numbers] = {}
        for unit in units(rank, len(members), copies):
            source = next((replica for replica, holds in sources if unit in holds), None)
            if source is None:
                raise Broken(f"law 1: unit {unit} is lost, for none of {before} that holds it is in {members}")
            plan[source] = (*plan.get(source, ()), unit)
        plans.append(plan)
    return tuple(plans)


class Replica:
    """One process. Whatever it does to others it asks of the world."""

    def __init__(self, world: Any, number: int, life: int) -> None:
        self.world, self.number, self.life = world, number, life
        self.alive, self.phase, self.stalled_until = True, NEW, 0.0
        self.generation, self.members = -1, ()
        self.held, self.held_members, self.step = -1, (), -1
        self.weights: Numbers = ()
        self.moments: dict[int, int] = {}
        self.pending: tuple[int, Numbers, dict[int, int]] | None = None  # step, weights, moments; None: not ready
        self.inbox: dict[tuple[int, int, str], dict[int, Any]] = {}  # by generation, stage and kind
        self.stage, self.gathering, self.returned = 0, False, False

    @property
    def ready(self) -> bool:
        return self.pending is not None

    @property
    def after(self) -> tuple[int, int]:
        return self.generation, self.pending[0] if self.pending else -1

    @property
    def inside(self) -> bool:
        return self.phase in (MOVING, STEPPING, LAST)

    # To and from the coordinator

    def speak(self, token: tuple[int, int]) -> None:
        """Say that it waits, again and again until it has heard."""
        if token != (self.generation, self.life) or self.phase != IDLE:
            return
        self.world.tell(self, self.where())
        if self.generation < 0 and not self.returned:
            self.world.tell(self, Joined(self.number))
        self.world.after(AGAIN, self, self.speak, token)

    def where(self) -> Waiting | Returned:
        step = self.pending[0] if self.held < 0 and self.pending else self.step
        if self.returned:
            return Returned(self.number, self.generation, self.members, self.held, self.held_members, step, self.ready)
        return Waiting(self.number, self.generation, self.held, step, self.ready)

    def prepared(self) -> None:
        self.phase = IDLE
        self.world.tell(self, Joined(self.number))
        self.world.after(AGAIN, self, self.speak, (self.generation, self.life))

    def new_coordinator(self, life: int) -> None:
        if life <= self.life:
            return
        self.life = life
        if self.inside:
            self.leave(say=False)
        if self.phase == IDLE:
            self.returned = True
            self.speak((self.generation, life))

    def leave(self, say: bool = True) -> None:
        self.phase = IDLE
        self.world.broken(self)
        if say:
            self.speak((self.generation, self.life))

    def on_break(self, generation: int) -> None:
        if self.inside and generation == self.generation:
            self.leave()

    def on_gather(self, generation: int, life: int) -> None:
        if self.inside and (generation, life) == (self.generation, self.life):
            self.gathering = True

    def on_form(self, form: Form, life: int) -> None:
        if life < self.life or form.generation <= self.generation or self.phase == GONE:
            return
        if self.inside:
            self.leave(say=False)
        self.settle(form)
        self.life, self.returned, self.phase, self.gathering = life, False, MOVING, False
        self.generation, self.members, self.stage, self.pending = form.generation, form.members, 0, None
        for peer in self.peers():
            self.world.send(self, peer, "hello", None)
        if not form.restore:
            self.transfer(form)
        elif form.members[0] == self.number:
            self.world.after(self.world.some(2), self, self.choose_checkpoint, form.generation)
        self.proceed()

    def settle(self, form: Form) -> None:
        if form.restore:
            self.held, self.held_members, self.step, self.moments, self.weights = -1, (), -1, {}, ()
            return
        if self.ready and self.after == (form.held, form.step):
            self.move()
        if self.held >= 0 and (self.held, self.step) != (form.held, form.step):
            raise Broken(f"law 2: replica {self.number} holds {self.held, self.step} and cannot settle as in {form}")

    # To and from the other members

    def peers(self) -> list[int]:
        return [member for member in self.members if member != self.number]

    def put(self, sender: int, generation: int, stage: int, kind: str, payload: Any) -> None:
        self.inbox.setdefault((generation, stage, kind), {})[sender] = payload

    def say_all(self, kind: str, payload: Any) -> None:
        self.put(self.number, self.generation, self.stage, kind, payload)
        for peer in self.peers():
            self.world.send(self, peer, kind, payload)

    def got(self, kind: str) -> dict[int, Any]:
        return self.inbox.get((self.generation, self.stage, kind), {})

    def on_message(self, sender: int, generation: int, stage: int, kind: str, payload: Any) -> None:
        if not self.alive or generation < self.generation or (generation == self.generation and not self.inside):
            self.world.refuse(sender, generation)
        else:
            self.put(sender, generation, stage, kind, payload)
            if generation == self.generation:
                self.proceed()

    def proceed(self) -> None:
        """Do what the messages that have come allow."""
        if self.phase == MOVING and not self.ready:
            self.take_over()
        elif self.phase == STEPPING and not self.ready:
            self.take_updates()
        if self.inside and len(self.got("ready")) == len(self.members):
            if not set(self.members) >= self.got("ready").keys():
                raise Broken(f"law 3: a stranger was at the barrier of generation {self.generation}")
            self.finish() if self.phase == LAST else self.move_on()

    def get_ready(self, step: int, weights: Numbers, moments: dict[int, int]) -> None:
        self.pending = (step, weights, moments)
        self.say_all("ready", None)

    # Forming

    def choose_checkpoint(self, generation: int) -> None:
        if self.generation == generation and self.phase == MOVING:
            self.say_all("checkpoint", self.world.checkpoint)
            self.proceed()

    def transfer(self, form: Form) -> None:
        plans = transfers(form.members, form.before, self.world.terms.copies)
        for member, plan in zip(form.members, plans, strict=True):
            if self.number not in plan:
                continue
            if lacking := set(plan[self.number]) - self.moments.keys():
                raise Broken(f"law 1: replica {self.number} should send the moments {lacking}, but has none")
            part = (form.step, self.weights, {unit: self.moments[unit] for unit in plan[self.number]})
            if member == self.number:
                self.put(member, self.generation, 0, "part", part)
            else:
                self.world.send(self, member, "part", part)
        self.sources = plans[form.members.index(self.number)].keys()

    def take_over(self) -> None:
        rank = self.members.index(self.number)
        if chosen := self.got("checkpoint"):
            step = next(iter(chosen.values()))
            weights, moments = undisturbed(step)
            mine = units(rank, len(self.members), self.world.terms.copies)
            self.get_ready(step, weights, {unit: moments[unit] for unit in mine})
        elif (parts := self.got("part")) and parts.keys() >= self.sources:
            step, weights, _ = next(iter(parts.values()))
            self.get_ready(step, weights, {u: m for part in parts.values() for u, m in part[2].items()})

    # Steps

    def move(self) -> None:
        """Commit in place, or swap to the new division."""
        assert self.pending
        if self.held != self.generation:
            self.held, self.held_members = self.generation, self.members
        self.step, self.weights, self.moments = self.pending
        self.pending = None
        self.world.committed(self)

    def move_on(self) -> None:
        leaving = self.phase == STEPPING and any(gather for gather, _ in self.got("update").values())
        self.move()
        self.inbox = {key: value for key, value in self.inbox.items() if key[:2] > (self.generation, self.stage)}
        self.stage += 1
        if leaving:
            self.leave()
        elif self.step == STEPS:
            self.phase = LAST
            self.say_all("ready", None)
            self.proceed()
        else:
            self.phase = STEPPING
            self.world.after(self.world.some(3), self, self.computed, (self.generation, self.stage))

    def computed(self, token: tuple[int, int]) -> None:
        if token == (self.generation, self.stage) and self.phase == STEPPING:
            rank = self.members.index(self.number)
            new = {unit: self.update(unit)[0] for unit in cut(rank, len(self.members))}
            self.say_all("update", (self.gathering, new))
            self.proceed()

    def update(self, unit: int) -> tuple[int, int]:
        return stepped(self.weights, self.moments[unit], unit, self.step + 1)

    def take_updates(self) -> None:
        updates = self.got("update")
        if len(updates) == len(self.members):
            new = {unit: value for _, part in updates.values() for unit, value in part.items()}
            moments = {unit: self.update(unit)[1] for unit in self.moments}
            self.get_ready(self.step + 1, tuple(new[unit] for unit in range(UNITS)), moments)

    def finish(self) -> None:
        self.phase = GONE
        self.world.tell(self, Finished(self.number))
        self.world.after(self.world.some(4), self, self.world.die, self, "came to its end")
