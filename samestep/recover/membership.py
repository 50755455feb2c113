"""Who takes part in a run: a state machine of events and the time. No IO, no clock, no randomness.

The environment starts the first `terms.replicas` processes, numbers 0 upward, and does what the actions say. An event
costs O(1) for each replica that it names; only forming a generation looks at all members. What is decided where is in
settle.py.

    started --Joined--> joiner --Form--> running --Waiting--> waiting --Form--> running --Finished--> finished
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from samestep.errors import ClusterError
from samestep.recover import settle
from samestep.recover.protocol import (
    Action,
    AllWaiting,
    End,
    Event,
    Exited,
    Finished,
    Form,
    Gather,
    Joined,
    Kill,
    Returned,
    Room,
    Silent,
    Start,
    StopAsked,
    Terms,
    Ticked,
    Waiting,
)
from samestep.recover.starts import Starts


class Membership:
    """generation: the current one, or the newest of an earlier coordinator. members: its replicas in rank order.

    done: every member has finished or ended well. After that, and after End, events are no longer answered, and the
    environment ends whoever still lives. number: replicas below it are of an earlier coordinator's life.
    """

    def __init__(self, terms: Terms, generation: int = 0, number: int = 0) -> None:
        self.generation = generation
        self.members: tuple[int, ...] = ()
        self.done = False
        self._terms = terms
        self._first_number = number
        self._next_number = number + (0 if generation else terms.replicas)
        self._opened = self._ended = self._stopping = self._gathered = False
        self._return_by: float | None = None
        self._started: dict[int, float] = {}  # until when each has to join; in the order of time
        self._joiners: set[int] = set()
        self._running: set[int] = set()
        self._waiting: dict[int, Waiting] = {}  # who came together shares one, of the first of them
        self._finished: set[int] = set()
        self._doomed: set[int] = set()  # silent and killed; still to exit
        self._gone: set[int] = set()
        self._answered: dict[int, int] = {}  # the newest generation that each has said Waiting in
        self._divisions: dict[int, tuple[int, ...]] = {}  # members of each generation that somebody still holds
        self._newest = -1  # the newest generation that somebody returned from
        self._form: Form | None = None
        self._lost: list[str] = []
        self._starts = Starts(terms)
        self._early = self._deaths = 0
        self._deadly = -1
        self._menu: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            Joined: self._on_joined,
            Waiting: self._on_waiting,
            AllWaiting: self._on_all_waiting,
            Returned: self._on_returned,
            Exited: self._on_exited,
            Silent: self._on_silent,
            Finished: self._on_finished,
            StopAsked: self._on_stop,
            Room: self._on_room,
            Ticked: self._on_tick,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """now: seconds of a clock that never goes back."""
        if self.done or self._ended:
            return []
        if not self._opened:
            self._open(now)
        if isinstance(event, Joined | Waiting | Returned) and event.replica in self._doomed:
            return []
        return self._menu[type(event)](event, now)

    def admit(self, now: float) -> int:
        """The number of one more process that the environment starts by itself; it has join_patience from `now`."""
        replica = self._next_number
        self._next_number += 1
        self._started[replica] = now + self._terms.join_patience
        return replica

    def _open(self, now: float) -> None:
        self._opened = True
        if self.generation:
            self._return_by = now + self._terms.return_patience
        else:
            numbers = range(self._first_number, self._next_number)
            self._started = dict.fromkeys(numbers, now + self._terms.join_patience)

    # What replicas say

    def _on_joined(self, event: Joined, now: float) -> list[Action]:
        replica = event.replica
        if replica not in self._started:
            if self._knows(replica):
                return []
            if replica in self._gone or replica < self._first_number:
                return self._fence(replica)
        self._started.pop(replica, None)
        self._joiners.add(replica)
        self._next_number = max(self._next_number, replica + 1)
        return self._proceed() or self._gather(replica)

    def _gather(self, replica: int) -> list[Action]:
        ending = self._gathered or self._waiting or self._lost or self._finished
        if ending or self._stopping or not 0 < len(self._running) < self._terms.lanes:
            return []
        self._gathered = True
        return [Gather(self.generation, f"replica {replica} has joined; it is let in after the step that is computed")]

    def _on_waiting(self, wait: Waiting, now: float) -> list[Action]:
        replica = wait.replica
        if replica in self._started:  # its Joined was lost
            return self._on_joined(Joined(replica), now)
        if not self._knows(replica) or wait.generation > self.generation:
            return self._fence(replica)
        stale = wait.generation < self._answered.get(replica, -1)
        if replica not in self._running or stale or self._form is None:  # None: it has yet to return
            return []
        if wait.generation < self.generation:
            reason = f"replica {replica} did not hear of generation {self.generation}; it is told again"
            return [replace(self._form, to=(replica,), reason=reason)]
        self._settle_down(wait)
        return self._proceed()

    def _on_all_waiting(self, event: AllWaiting, now: float) -> list[Action]:
        """As one after the other. Where each is awaited, no step of Python for each: 100,000 then cost milliseconds."""
        replicas = event.replicas
        here = self._form is not None and event.generation == self.generation
        if not (here and self._running.issuperset(replicas) and self._doomed.isdisjoint(replicas)):
            waits = (Waiting(r, event.generation, event.held, event.step, event.ready) for r in replicas)
            return [action for wait in waits for action in self.handle(wait, now)]
        if replicas:
            shared = Waiting(replicas[0], event.generation, event.held, event.step, event.ready)
            self._running.difference_update(replicas)
            self._waiting.update(dict.fromkeys(replicas, shared))
            self._answered.update(dict.fromkeys(replicas, event.generation))
        return self._proceed()

    def _settle_down(self, wait: Waiting) -> None:
        self._running.discard(wait.replica)
        self._waiting[wait.replica] = wait
        self._answered[wait.replica] = wait.generation

    def _on_returned(self, event: Returned, now: float) -> list[Action]:
        wait = Waiting(event.replica, event.generation, event.held, event.step, event.ready)
        if self._return_by is None or event.replica in self._gone:
            return self._on_waiting(wait, now)
        self._next_number = max(self._next_number, event.replica + 1)
        self._divisions |= {event.generation: event.members, event.held: event.held_members}
        self._settle_down(wait)
        if event.generation > self._newest:
            self._newest, self.members = event.generation, event.members
            self.generation = max(self.generation, event.generation)
            self._running = set(event.members) - self._waiting.keys()
        return self._proceed()

    def _on_finished(self, event: Finished, now: float) -> list[Action]:
        if not self._knows(event.replica):
            return self._fence(event.replica)
        if event.replica not in self._running:
            return []
        self._running.discard(event.replica)
        self._finished.add(event.replica)
        return self._proceed()

    # What the environment says

    def _on_exited(self, event: Exited, now: float) -> list[Action]:
        if event.replica in self._finished or not self._knows(event.replica):
            self._gone.add(event.replica)  # its Returned may still be on the way
            return []
        if event.fatal:
            return self._end(event.reason)
        return self._lose(event.replica, event.reason, now) + self._start_due(now) + self._proceed()

    def _on_silent(self, event: Silent, now: float) -> list[Action]:
        if not self._knows(event.replica):
            return self._fence(event.replica)
        self._doomed.add(event.replica)
        if self._waiting.pop(event.replica, None):
            self._running.add(event.replica)  # nobody forms until it is surely dead
        if event.replica in self._joiners:
            self._joiners.discard(event.replica)
            self._started[event.replica] = now + self._terms.join_patience
        return [Kill(event.replica, f"{event.reason}; it is killed")]

    def _on_stop(self, event: StopAsked, now: float) -> list[Action]:
        self._stopping = True
        self._starts.cancel()
        return self._proceed()

    def _on_room(self, event: Room, now: float) -> list[Action]:
        self._starts.room = event.places
        return self._start_due(now)

    def _on_tick(self, event: Ticked, now: float) -> list[Action]:
        late = []
        for replica, until in self._started.items():
            if now < until:
                break
            late.append(replica)
        actions = self._give_up(late, f"did not join within {self._terms.join_patience:g} s", now)
        if self._return_by is not None and now >= self._return_by:
            self._return_by = None
            why = f"did not return within {self._terms.return_patience:g} s"
            actions += self._give_up(sorted(self._running), why, now)
            self._owe_all(now)
        return actions + self._start_due(now) + self._proceed()

    def _give_up(self, replicas: Iterable[int], why: str, now: float) -> list[Action]:
        actions: list[Action] = []
        for replica in replicas:
            reason = f"replica {replica} {why}"
            actions += [Kill(replica, f"{reason}; it is killed"), *self._lose(replica, reason, now)]
        return actions

    def _owe_all(self, now: float) -> None:
        """Nobody of the earlier coordinator's life has returned: all are to be started, as at first."""
        if self._terms.replace and not (self._stopping or self._waiting or self._joiners):
            for _ in range(self._terms.replicas):
                self._starts.owe("nobody has returned to the new coordinator", now)

    # Losses and starts

    def _knows(self, replica: int) -> bool:
        here = replica in self._running or replica in self._waiting or replica in self._finished
        return here or replica in self._joiners or replica in self._started

    def _fence(self, replica: int) -> list[Action]:
        return [Kill(replica, f"replica {replica} is no part of generation {self.generation}; it is told to exit")]

    def _lose(self, replica: int, reason: str, now: float) -> list[Action]:
        if replica in self._running or replica in self._waiting:
            self._lost.append(reason)
        self._running.discard(replica)
        self._joiners.discard(replica)
        for known in (self._waiting, self._started, self._answered):
            known.pop(replica, None)
        self._gone.add(replica)
        if self.generation == 0:
            return self._lose_early(reason, now)
        if self._terms.replace and not self._stopping:
            self._starts.owe(reason, now)
        return []

    def _lose_early(self, reason: str, now: float) -> list[Action]:
        """Before the first generation nobody can go on with fewer, so one is started whatever the terms say."""
        self._early += 1
        if self._early > self._terms.deaths:
            return self._end(f"{reason}; {self._early} replicas were lost before the run began, so it ends")
        return [self._start(reason, now)]

    def _start_due(self, now: float) -> list[Action]:
        return [] if self._ended else [self._start(reason, now) for reason in self._starts.due(now)]

    def _start(self, reason: str, now: float) -> Action:
        replica = self.admit(now)
        return Start(replica, f"{reason}; replica {replica} is started in its place")

    def _end(self, reason: str) -> list[Action]:
        ended, self._ended = self._ended, True
        return [] if ended else [End(reason)]

    # Forming

    def _proceed(self) -> list[Action]:
        """Form the next generation where nobody is left in this one."""
        early = self._return_by is not None and self._newest < self.generation  # newer ones may yet return
        if self._running or self._ended or early:
            return []
        if self._waiting:
            return self._go_on()
        if self._finished:  # who finished has passed the last barrier, so nothing is left to do
            self.done = True
            return []
        return self._begin()

    def _begin(self) -> list[Action]:
        """Nobody holds anything: the first generation, or one after the death of all."""
        if self._stopping:
            return self._end("the run was asked to stop and no replica is left in it; it ends")
        needed = 1 if self.generation else self._terms.replicas
        if len(self._joiners) >= needed:
            return self._install([], None)
        if self._started or self._starts:
            return []
        cause = settle.named(self._lost or ["nobody has joined"])
        return self._end(f"{cause}; no replica is left and none may be started, so the run ends")

    def _go_on(self) -> list[Action]:
        ranks = dict.fromkeys(self.members)
        waits = {replica: self._waiting[replica] for replica in ranks if replica in self._waiting}
        others = [replica for replica in self._waiting if replica not in ranks]  # only if they returned
        try:
            choices = settle.targets(settle.distinct(waits))
        except ClusterError as error:
            return self._end(str(error))
        if choices and self._step_kills(choices[0].step):
            why = f"{self._deaths} times step {choices[0].step + 1} was not survived by all"
            return self._end(f"{settle.named(self._lost)}; {why}, so the step itself kills, and the run ends")
        there = {choice: settle.reaching(waits, choice) for choice in choices}
        top = next((choice for choice in choices if self._whole(there[choice], choice)), None)
        kept = there[top or choices[0]] if choices else list(waits)
        self._joiners |= waits.keys() - kept if len(kept) < len(waits) else set()
        self._joiners |= {replica for replica in others if self._waiting[replica].held < 0}
        strays = [replica for replica in others if self._waiting[replica].held >= 0]
        self._gone.update(strays)
        return [kill for replica in strays for kill in self._fence(replica)] + self._install(kept, top)

    def _whole(self, there: Iterable[int], top: settle.Target) -> bool:
        return settle.whole(self._divisions.get(top.held, ()), set(there), self._terms.copies)

    def _step_kills(self, step: int) -> bool:
        """Counts the times that members were lost with nothing committed in between."""
        if self._lost:
            self._deaths = self._deaths + 1 if step == self._deadly else 1
            self._deadly = step
        return self._deaths >= self._terms.deaths

    def _install(self, kept: list[int], top: settle.Target | None) -> list[Action]:
        """Form the next generation of those kept, in their order, and of joiners by number."""
        new = [] if self._stopping else sorted(self._joiners)[: max(0, self._terms.lanes - len(kept))]
        reason = settle.sentence(self._lost, [f"replica {replica} has joined" for replica in new], len(kept), top)
        self.generation += 1
        self.members = (*kept, *new)
        before = self._divisions[top.held] if top else ()
        held, step = top.pair if top else (-1, -1)
        self._divisions = {self.generation: self.members} | ({held: before} if top else {})
        self._joiners.difference_update(new)
        self._running = set(self.members)
        self._waiting, self._lost = {}, []
        self._gathered, self._return_by = False, None
        self._form = Form(self.members, self.generation, self.members, before, held, step, top is None, reason)
        return [self._form]
