"""A Membership that is told of one thing after the other."""

from typing import Any

from samestep.recover.membership import Membership
from samestep.recover.protocol import Action, Event, Exited, Joined, Terms, Waiting


class Run:
    """A Membership and its clock."""

    def __init__(self, replicas: int = 3, generation: int = 0, number: int = 0, **terms: Any) -> None:
        self.membership = Membership(Terms(replicas, **({"lanes": 8} | terms)), generation, number)
        self.now = 0.0

    def says(self, *events: Event) -> list[Action]:
        """The actions that the last of these events causes."""
        return [self.membership.handle(event, self.now) for event in events][-1]

    def waits(self, *replicas: int, held: int, step: int, ready: bool = False) -> list[Action]:
        generation = self.membership.generation
        return self.says(*(Waiting(replica, generation, held, step, ready) for replica in replicas))


def formed(replicas: int = 3, **terms: Any) -> Run:
    run = Run(replicas, **terms)
    run.says(*(Joined(replica) for replica in range(replicas)))
    return run


def dies(replica: int, fatal: bool = False) -> Exited:
    return Exited(replica, f"replica {replica} was killed by SIGKILL", fatal)


def only(actions: list[Action]) -> Any:
    assert len(actions) == 1, actions
    return actions[0]
