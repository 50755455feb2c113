"""Survivors go on: the production Membership decides who is in which generation, from which step, and what is restored.

Replicas are told apart only where they differ; those that leave a generation alike say so in one event.
"""

import math
from collections import deque
from collections.abc import Sequence

from samestep.plan.failures import Blow
from samestep.plan.world import ALWAYS, Setup, World
from samestep.recover.membership import Membership
from samestep.recover.protocol import Action, AllWaiting, End, Event, Exited, Form, Gather, Joined, Start, Terms

WITHOUT_END = 10**9


def terms(setup: Setup) -> Terms:
    """Whoever is lost is replaced, and at once: how long that takes is drawn with the failure."""
    return Terms(
        setup.places,
        setup.shared,
        setup.copies,
        replace=True,
        restarts=WITHOUT_END,
        deaths=setup.deaths or WITHOUT_END,
        backoff=0.0,
        join_patience=math.inf,
    )


class Survivors(World):
    """Replicas have numbers, the machines under them places.

    members: of the generation, living and dead. holders: so many of them, the first ones, held something before it.
    joined: prepared, and not yet in a generation that has formed. dying: dead, and the coordinator has not heard of it.
    """

    def __init__(self, setup: Setup, blows: Sequence[Blow], price: Sequence[float], every: float) -> None:
        super().__init__(setup, blows, price, every)
        self.membership = Membership(terms(setup))
        self.numbers = list(range(setup.places))  # by place; -1: nobody is there
        self.vacant: deque[tuple[int, float]] = deque()  # places, and when somebody else is there
        self.inside: set[int] = set()
        self.joined = set(self.numbers)
        self.dying: set[int] = set()
        self.form: Form | None = None
        self.held, self.holders, self.formed = -1, 0, False
        for number in self.numbers:
            self.tell(Joined(number))
        self.has_formed()  # the run begins when all are there

    def lives(self, place: int) -> bool:
        return self.numbers[place] >= 0

    def takes_part(self, place: int) -> bool:
        return self.numbers[place] in self.inside

    def lose(self, places: list[int], seconds: float) -> None:
        lost = [self.numbers[place] for place in places]
        for place, number in zip(places, lost, strict=True):
            self.numbers[place] = -1
            self.vacant.append((place, self.now + seconds))
            self.after(self.setup.detect, self.exited, number, epoch=ALWAYS)
        self.dying.update(lost)
        self.joined.difference_update(lost)
        if not self.inside.isdisjoint(lost):
            self.close()
        self.count()
        if not self.inside.isdisjoint(lost):
            self.leave()

    def leave(self) -> None:
        """Whoever lives in the generation says that it waits, once."""
        if self.phase == "detecting" or self.form is None:
            return
        self.enter("detecting")
        members = self.form.members
        first = len(members) if self.formed else self.holders
        for group, held, step in ((members[:first], self.held, self.step), (members[first:], -1, -1)):
            living = tuple([number for number in group if number not in self.dying])
            if living:
                self.said += len(living)
                self.tell(AllWaiting(living, self.form.generation, held, step, False))

    def exited(self, number: int) -> None:
        self.dying.discard(number)
        self.tell(Exited(number, f"replica {number} was lost"))

    def join(self, number: int, place: int) -> None:
        self.numbers[place] = number
        self.joined.add(number)
        self.count()
        self.tell(Joined(number))

    def tell(self, event: Event) -> None:
        for action in self.membership.handle(event, self.now):
            self.act(action)

    def act(self, action: Action) -> None:
        if isinstance(action, Form):
            self.on_form(action)
        elif isinstance(action, Gather):
            self.gathering = True
            self.cut()
        elif isinstance(action, Start):
            place, ready = self.vacant.popleft()
            self.after(max(0.0, ready - self.now), self.join, action.replica, place, epoch=ALWAYS)
        elif isinstance(action, End):
            self.enter("ended")
            self.queue.clear()

    def on_form(self, form: Form) -> None:
        if form.restore and self.generations:
            self.roll_back()
        self.form, self.inside, self.gathering, self.formed = form, set(form.members), False, False
        self.generations += 1
        new = len(self.joined & self.inside)
        self.holders = 0 if form.restore else len(form.members) - new
        self.held = -1 if form.restore else form.held
        self.count()
        seconds = self.setup.restart if form.restore else self.setup.form + (self.setup.join if new else 0.0)
        self.enter("forming")
        self.after(seconds, self.has_formed)
        if not self.dying.isdisjoint(self.inside):
            self.leave()

    def has_formed(self) -> None:
        assert self.form is not None
        self.joined -= self.inside
        self.held, self.formed = self.form.generation, True
        self.count()
        self.begin()

    def count(self) -> None:
        self.members = len(self.inside) - len(self.dying & self.inside)
        self.idle = len(self.joined - self.inside)
