"""Members that wait and are told of in one event: the same as one event for each."""

import random

import pytest

from samestep.recover.membership import Membership
from samestep.recover.protocol import Action, AllWaiting, Event, Joined, Silent, Terms, Waiting
from tests.recover.scripted import dies, formed, only


def told(membership: Membership, draw: random.Random, now: float, together: bool) -> list[Action]:
    """The members that live leave their generation, in two groups: what each says for itself, or one event for each."""
    members = list(membership.members)
    dead = set(draw.sample(members, draw.randint(0, len(members) - 1)))
    cut, held, step = draw.randint(0, len(members)), draw.randint(-1, 3), draw.randint(3, 4)
    generation = membership.generation - (draw.random() < 0.1)
    groups = [[r for r in part if r not in dead] for part in (members[:cut], members[cut:])]
    new = draw.random() < 0.3
    said = [(held, step, draw.random() < 0.5), (-1, -1, False) if new else (held, step, draw.random() < 0.5)]
    hanging = draw.sample(members, 1) if draw.random() < 0.3 else []
    actions = [action for r in hanging for action in membership.handle(Silent(r, "it hangs"), now)]
    dead.update(hanging)
    for group, state in zip(groups, said, strict=True):
        if together:
            actions += membership.handle(AllWaiting(tuple(group), generation, *state), now)
        else:
            waits = [Waiting(replica, generation, *state) for replica in group]
            actions += [action for wait in waits for action in membership.handle(wait, now)]
    silent = sorted(dead)[:1] if draw.random() < 0.3 else []
    events: list[Event] = [*(Silent(r, "it hangs") for r in silent), *map(dies, sorted(dead))]
    joined = [membership.admit(now) for _ in range(draw.randint(0, 2))]
    for event in [*events, *map(Joined, joined)]:
        actions += membership.handle(event, now)
    return actions


@pytest.mark.parametrize("seed", range(200))
def test_many_that_wait_in_one_event_are_as_many_events(seed: int) -> None:
    terms = Terms(6, 9, copies=random.Random(seed).choice([None, 2]), replace=True, backoff=0.0, deaths=100)
    alone, together = Membership(terms), Membership(terms)
    for replica in range(6):
        assert alone.handle(Joined(replica), 0.0) == together.handle(Joined(replica), 0.0)
    for turn in range(8):
        draws = random.Random(f"{seed} {turn}"), random.Random(f"{seed} {turn}")
        assert told(alone, draws[0], turn, False) == told(together, draws[1], turn, True)
        assert (alone.members, alone.generation) == (together.members, together.generation)


def test_nobody_waits_in_an_empty_event() -> None:
    assert formed(2).says(AllWaiting((), 1, 1, 3, False)) == []


def test_one_that_was_declared_lost_is_fenced_among_many() -> None:
    run = formed(3)
    run.says(dies(1))
    assert only(run.says(AllWaiting((0, 1), 1, 1, 3, False))) == run.says(Joined(1))[0]
    assert only(run.says(AllWaiting((2,), 1, 1, 3, False))).members == (0, 2)
