"""A whole run on one thread in simulated time: the production Membership, simulated replicas, and faults by seed.

Laws, checked after every event:
1  the state after a step is that of an undisturbed run, whoever holds it
2  nobody commits a step that the survivors do not commit
3  generations rise; nobody is a member who is known to be dead or was fenced
4  the run ends, within BOUND simulated seconds, unless nobody is left and nobody may be started
5  nothing is restored while every moment has a living holder, and at most one step is computed again
6  every action has a reason
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from samestep.recover.membership import Membership
from samestep.recover.protocol import (
    Action,
    End,
    Event,
    Exited,
    Form,
    Gather,
    Joined,
    Kill,
    Returned,
    Silent,
    Start,
    StopAsked,
    Terms,
    Ticked,
    Waiting,
)
from tests.recover.simulated import GONE, NEW, STEPS, UNITS, Broken, Replica, undisturbed, units

BOUND = 3000.0  # seconds of simulated time; a run without faults takes 60
TICK, SILENCE = 5.0, 15.0  # seconds between ticks, and until a replica that hangs is noticed
EVENTS = 1200  # among the first so many, faults happen
LOSSY = (Waiting, Joined, Returned)


@dataclass(frozen=True)
class Outcome:
    seed: int
    law: str  # the law that broke; empty where all hold
    events: int
    restored: int
    ended: bool


def drawn_terms(rng: random.Random) -> Terms:
    return Terms(
        replicas=rng.randint(2, 6),
        lanes=rng.randint(6, UNITS),
        copies=rng.choice([None, 1, 2, 2, 3]),
        replace=rng.random() < 0.5,
        restarts=100,
        deaths=1000,
        join_patience=30.0,
        return_patience=20.0,
    )


class World:
    def __init__(self, seed: int, make: Callable[..., Membership] = Membership) -> None:
        self.rng = random.Random(seed)
        self.terms, self.make = drawn_terms(self.rng), make
        self.loss = self.rng.choice([0.0, 0.0, 0.1, 0.3])
        self.now, self.count, self.checkpoint, self.restored = 0.0, 0, 0, 0
        self.queue: list[tuple[float, int, Replica | None, Callable[..., None], tuple[Any, ...]]] = []
        self.order = 0
        self.life, self.coordinator, self.ended, self.stopped = 0, make(self.terms), False, False
        self.replicas: dict[int, Replica] = {}
        self.out: set[int] = set()  # known to be dead, or fenced
        self.let_in: set[int] = set()  # was a member once
        self.zombies: set[int] = set()  # said to be dead, but alive
        self.orphans: set[int] = set()  # a new coordinator does not know of them
        self.form: Form | None = None
        self.restored_in = 1  # the newest generation that set itself up anew; what older ones do is lost
        self.top = -1  # the last step that anybody has committed since the last restoration
        self.faults = self.drawn_faults()
        for number in range(self.terms.replicas):
            self.spawn(number)
        self.after(TICK, None, self.tick)

    # Time and network

    def some(self, most: float) -> float:
        return most * (0.1 + 0.9 * self.rng.random())

    def after(self, delay: float, replica: Replica | None, call: Callable[..., None], *args: Any) -> None:
        self.order += 1
        heapq.heappush(self.queue, (self.now + delay, self.order, replica, call, args))

    def send(self, source: Replica, to: int, kind: str, payload: Any) -> None:
        target = self.replicas[to]
        message = (source.number, source.generation, source.stage, kind, payload)
        self.after(self.some(0.5), target, target.on_message, *message)

    def refuse(self, sender: int, generation: int) -> None:
        source = self.replicas[sender]
        self.after(self.some(0.5), source, source.on_break, generation)

    def broken(self, replica: Replica) -> None:
        for peer in replica.peers():
            self.refuse(peer, replica.generation)
        if not replica.inside:  # peers may have connected to one that has not heard of their generation
            for generation, peer in [(key[0], peer) for key, peers in replica.inbox.items() for peer in peers]:
                self.refuse(peer, generation)

    def tell(self, replica: Replica, event: Event) -> None:
        """A message to the coordinator: delayed, and where it is repeated anyway perhaps lost or doubled."""
        lossy = isinstance(event, LOSSY)
        if not (lossy and self.rng.random() < self.loss):
            self.after(self.some(0.5), None, self.hear, replica.life, event)
        if lossy and self.rng.random() < self.loss:
            self.after(self.some(10), None, self.hear, replica.life, event)

    def hear(self, life: int, event: Event) -> None:
        if life == self.life:
            self.handle(event)

    # Processes

    def spawn(self, number: int) -> None:
        replica = self.replicas[number] = Replica(self, number, self.life)
        self.after(self.some(8), replica, replica.prepared)

    def die(self, replica: Replica, how: str) -> None:
        if replica.alive:
            replica.alive = False
            self.broken(replica)
            self.after(self.some(1), None, self.handle, Exited(replica.number, f"replica {replica.number} {how}"))

    def kill(self, replica: Replica) -> None:
        self.after(self.some(1), None, self.die, replica, "was killed by SIGKILL")

    # The coordinator

    def handle(self, event: Event) -> None:
        if isinstance(event, Exited):
            self.out.add(event.replica)
        for action in self.coordinator.handle(event, self.now):
            if not action.reason.strip():
                raise Broken(f"law 6: {action} has no reason")
            self.act(action)

    def tick(self) -> None:
        self.handle(Ticked())
        self.after(TICK, None, self.tick)

    def act(self, action: Action) -> None:
        if isinstance(action, Form):
            self.check_form(action)
            for number in action.to:
                if self.rng.random() >= self.loss:
                    self.after(self.some(1), self.replicas[number], self.replicas[number].on_form, action, self.life)
        elif isinstance(action, Gather):
            for number in self.coordinator.members:
                replica = self.replicas[number]
                self.after(self.some(1), replica, replica.on_gather, action.generation, self.life)
        elif isinstance(action, Start):
            self.spawn(action.replica)
        elif isinstance(action, Kill):
            self.out.add(action.replica)
            self.kill(self.replicas[action.replica])
        else:
            self.end(action)

    def end(self, action: End) -> None:
        self.ended = True
        left = [r.number for r in self.replicas.values() if r.alive and r.phase != GONE]
        left = [number for number in left if number not in self.out | self.orphans | self.zombies]
        if self.stopped:
            left = [number for number in left if self.replicas[number].generation >= 0]
        if (self.terms.replace and not self.stopped) or left:
            raise Broken(f"law 4: the run ends though {left} could go on: {action.reason}")

    # Laws

    def check_form(self, form: Form) -> None:
        if self.form and form.generation == self.form.generation:
            if replace(form, to=self.form.to, reason=self.form.reason) != self.form:
                raise Broken(f"law 3: generation {form.generation} is formed twice")
            return
        if self.form and form.generation < self.form.generation:
            raise Broken(f"law 3: generation {form.generation} follows {self.form.generation}")
        if self.out & set(form.members) or len(set(form.members)) < len(form.members):
            raise Broken(f"law 3: {form.members} has a member twice, or of {sorted(self.out)}")
        if self.stopped and not self.let_in >= set(form.members):
            raise Broken(f"law 3: {form.members} has a new member though a stop was asked for")
        self.let_in |= set(form.members)
        if form.restore:
            self.check_restore(form)
            self.top, self.restored = -1, self.restored + (self.form is not None)
            self.restored_in = form.generation
        elif form.step < self.top and not self.zombies & set(form.members):  # a new coordinator may know no better
            raise Broken(f"law 5: step {self.top} was committed, but the run goes on from {form.step}")
        self.form = form

    def check_restore(self, form: Form) -> None:
        members = [self.replicas[number] for number in form.members]
        pairs = {(r.held, r.step) for r in members if r.held >= 0}
        for r in [r for r in members if r.ready and r.held >= 0]:  # others hold what the newest checkpoint does
            if all(peer.after == r.after for peer in members if peer.number in r.members):
                pairs.add(r.after)
        for pair in pairs:
            holding = [r for r in members if (r.held, r.step) == pair]
            moving = [r for r in members if r.after == pair and r not in holding]
            stuck = any(r.held >= 0 and r not in holding and r not in moving for r in members)
            alive = {u for r in holding for u in r.moments} | {u for r in moving for u in r.pending[2]}
            if len(alive) == UNITS and not stuck:
                raise Broken(f"law 5: {form} although all moments of {pair} have living holders")

    def committed(self, replica: Replica) -> None:
        weights, moments = undisturbed(replica.step)
        mine = units(replica.held_members.index(replica.number), len(replica.held_members), self.terms.copies)
        if replica.weights != weights or replica.moments != {unit: moments[unit] for unit in mine}:
            raise Broken(f"law 1: replica {replica.number} has another state after step {replica.step}")
        if replica.generation == self.form.generation:
            self.top = max(self.top, replica.step)
            if replica.number == replica.members[0] and replica.step % 3 == 0:
                self.after(self.some(3), None, self.saved, replica.step)
        elif replica.generation >= self.restored_in and replica.step > max(self.form.step, self.top):
            raise Broken(f"law 2: replica {replica.number} committed step {replica.step}, which {self.form} does not")

    def saved(self, step: int) -> None:
        self.checkpoint = max(self.checkpoint, step)

    # Faults

    def drawn_faults(self) -> list[tuple[int, Callable[[], None]]]:
        menu = [self.kill_one, self.kill_one, self.kill_two, self.kill_all, self.stall, self.cut_off]
        menu += [self.glitch, self.join, self.join, self.restart_coordinator, self.stop]
        span = self.rng.choice([100, 400, EVENTS])
        return sorted(
            ((self.rng.randrange(span), self.rng.choice(menu)) for _ in range(self.rng.randint(0, 5))),
            key=lambda fault: fault[0],
        )

    def pick(self, count: int = 1) -> list[Replica]:
        living = [replica for replica in self.replicas.values() if replica.alive]
        return self.rng.sample(living, min(count, len(living)))

    def kill_one(self) -> None:
        for replica in self.pick():
            self.die(replica, "was killed by SIGSEGV")

    def kill_two(self) -> None:
        for replica in self.pick(2):
            self.die(replica, "was killed by SIGKILL")

    def kill_all(self) -> None:
        for replica in self.pick(99):
            self.die(replica, "lost its power")

    def stall(self) -> None:
        for replica in self.pick():
            replica.stalled_until = self.now + self.some(60)
            self.after(SILENCE, None, self.notice, replica)

    def notice(self, replica: Replica) -> None:
        if replica.alive and replica.stalled_until > self.now:
            self.handle(Silent(replica.number, f"replica {replica.number} has said nothing for {SILENCE:g} s"))

    def cut_off(self) -> None:
        """It is declared dead and its connections break, but it wakes up later: a zombie."""
        for replica in self.pick():
            replica.stalled_until = self.now + self.some(60)
            self.broken(replica)
            self.zombies.add(replica.number)
            self.after(self.some(1), None, self.handle, Exited(replica.number, f"replica {replica.number} is cut off"))

    def glitch(self) -> None:
        for replica in self.pick():
            self.after(0.0, replica, replica.on_break, replica.generation)

    def join(self) -> None:
        self.spawn(self.coordinator.admit(self.now))

    def restart_coordinator(self) -> None:
        """The journal knows the last generation and number. Before the first generation there is nothing to return."""
        if self.form is None:
            return
        self.life += 1
        self.out = {number for number in self.out if not self.replicas[number].alive}  # who lives may return
        self.orphans = {replica.number for replica in self.replicas.values() if replica.phase == NEW}
        self.coordinator = self.make(self.terms, self.form.generation, max(self.replicas) + 1)
        if self.stopped:
            self.handle(StopAsked())
        for replica in self.replicas.values():
            self.after(self.some(4), replica, replica.new_coordinator, self.life)

    def stop(self) -> None:
        self.stopped = True
        self.handle(StopAsked())

    # The run

    def run(self) -> None:
        while not (self.coordinator.done or self.ended or self.over()):
            self.now, _, replica, call, args = heapq.heappop(self.queue)
            if self.now > BOUND:
                raise Broken(f"law 4: the run has not ended after {BOUND:g} s")
            if replica is not None and replica.stalled_until > self.now:
                self.after(replica.stalled_until - self.now, replica, call, *args)
            elif replica is None or replica.alive or call == replica.on_message:  # the dead refuse messages
                call(*args)
            self.count += 1
            while self.faults and self.faults[0][0] <= self.count and not self.ended:
                self.faults.pop(0)[1]()
        finished = [replica for replica in self.replicas.values() if replica.phase == GONE]
        members = [self.replicas[number] for number in self.coordinator.members if number not in self.out]
        if self.coordinator.done and any(replica.alive and replica.phase != GONE for replica in members):
            raise Broken("law 4: the run is done before all its members are")
        if self.coordinator.done and not (finished and all(replica.step == STEPS for replica in finished)):
            raise Broken("law 4: the run is done before its last step")

    def over(self) -> bool:
        """All have finished, though a new coordinator cannot know it."""
        real = [replica for replica in self.replicas.values() if replica.number not in self.zombies]
        finished = any(replica.phase == GONE for replica in real)
        return self.life > 0 and finished and all(r.phase == GONE for r in real if r.alive)


def simulate(seed: int, make: Callable[..., Membership] = Membership) -> Outcome:
    world, law = World(seed, make), ""
    try:
        world.run()
    except Broken as broken:
        law = str(broken)
    return Outcome(seed, law, world.count, world.restored, world.ended)
