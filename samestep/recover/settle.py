"""Where the survivors of a generation go on, and whether they still hold all state. Pure functions.

A member moves only when all were ready. So if one has moved, dead or alive, every survivor is ready, and the step is
kept; if a survivor is not ready, nobody has moved, and the step is computed again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from samestep.errors import ClusterError
from samestep.recover.protocol import Waiting

NAMED = 3  # causes that a sentence lists; a lost rack would fill a page


@dataclass(frozen=True)
class Target:
    """The pair from which the survivors go on. moved: some or all of them get there without a barrier."""

    held: int
    step: int
    moved: bool

    @property
    def pair(self) -> tuple[int, int]:
        return self.held, self.step


def targets(waits: Sequence[Waiting]) -> list[Target]:
    """Where they may go on from, best first; empty where nobody holds anything.

    Raises ClusterError where a survivor cannot get to where another one is.
    """
    pairs = sorted({(wait.held, wait.step) for wait in waits if wait.held >= 0})
    ahead = {_after(wait) for wait in waits}
    if len(ahead) == 1 and all(wait.ready for wait in waits):
        on = Target(*ahead.pop(), moved=True)
        # Where only the division changes, the old one serves as well: a member that died may have held what no other
        # holds under the new one.
        return [on, *(Target(held, step, moved=False) for held, step in pairs if step == on.step)]
    if not pairs:
        return []
    top = Target(*pairs[-1], moved=len(pairs) > 1)
    for wait in waits:
        if not (reaches(wait, top) or _is_new(wait, top)):
            raise ClusterError(
                f"replica {wait.replica} holds step {wait.step} of generation {wait.held} and is not ready for step "
                f"{top.step} of generation {top.held}, where another replica is; their states are mixed, the run ends"
            )
    return [top]


def reaches(wait: Waiting, top: Target) -> bool:
    """It holds the target, or can move there by itself."""
    return (wait.held, wait.step) == top.pair or (wait.ready and _after(wait) == top.pair)


def reaching(waits: Mapping[int, Waiting], top: Target) -> list[int]:
    """Those that reach it, in their order."""
    found = distinct(waits)
    there = {id(wait) for wait in found if reaches(wait, top)}
    if len(there) == len(found):
        return list(waits)
    return [replica for replica, wait in waits.items() if id(wait) in there]


def distinct(waits: Mapping[int, Waiting]) -> list[Waiting]:
    """Each object once. Replicas that came together share one, so what follows need not look at each of 100,000."""
    return list(dict(zip(map(id, waits.values()), waits.values(), strict=True)).values())


def _after(wait: Waiting) -> tuple[int, int]:
    """What it holds once it has moved: the new division, and after that one step more."""
    return wait.generation, wait.step + (wait.held == wait.generation)


def _is_new(wait: Waiting, top: Target) -> bool:
    """It holds nothing, and the generation that let it in has not moved."""
    return wait.held < 0 and wait.generation != top.held


def whole(members: Sequence[int], living: Collection[int], copies: int | None) -> bool:
    """Every slice of this division has a living holder. The slice of rank r is held by ranks r .. r + copies - 1."""
    width = len(members)
    dead = {rank for rank, replica in enumerate(members) if replica not in living}
    deep = width if copies is None else min(copies, width)
    lost = any(all((rank + i) % width in dead for i in range(deep)) for rank in dead)
    return width > 0 and not lost


def sentence(lost: Sequence[str], new: Sequence[str], kept: int, top: Target | None) -> str:
    """What has happened and how those kept and the new ones go on. top: None where they set up anew."""
    count = kept + len(new)
    who = "1 replica goes on" if count == 1 else f"{count} replicas go on"
    cause = named([*lost, *new])
    if top is None:
        lack = "no living replica holds all state, so " if kept or lost else ""
        return f"{cause}; {lack}{who} from the newest checkpoint or the seed"
    if top.moved:
        return f"{cause}; {who} from step {top.step}, which all have"
    return f"{cause}; {who} and {'computes' if count == 1 else 'compute'} step {top.step + 1}{' again' if lost else ''}"


def named(causes: Sequence[str]) -> str:
    causes = list(dict.fromkeys(causes))  # a host that is gone is the cause of all its replicas
    more = [f"{len(causes) - NAMED} more"] if len(causes) > NAMED else []
    return ", ".join([*causes[:NAMED], *more]) or "a connection between replicas broke"
