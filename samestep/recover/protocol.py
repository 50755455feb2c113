"""What the coordinator of a run hears and says; membership.py decides. Numbers and plain sentences only.

A *replica* is one process, named by a number that is given once. A *generation* is the life of one set of members in
rank order, numbered upward; every message between members carries it, so that nobody takes one from another life.

What a replica holds is a pair (held, step): the generation whose division of the optimizer state it follows, and the
last step that it has committed. The pair fixes every bit of it. A member moves, from (held, step) to the next pair,
only after a barrier at which all members said that they were *ready*: each had all it needs to move by itself.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """replicas: to begin with. lanes: the most members. copies: living holders of each slice of the optimizer state,
    ranks r, r+1, ...; None: everybody holds all. replace: start one for each that is lost, at most `restarts` of them,
    backoff * 2**(n-1) seconds after the n-th, counted from the last `calm` seconds without a loss or a start. deaths:
    how often one step may cost members before the run ends; also how many are started again before the first
    generation. Patience is in seconds.

    minimum: replicas with which an engine that has no room for all may begin. short: how many fewer it begins with;
    they are started once there is room (see Room), like replacements.
    """

    replicas: int
    lanes: int
    copies: int | None = None
    replace: bool = False
    restarts: int = 10
    deaths: int = 3
    backoff: float = 1.0
    calm: float = 1800.0
    join_patience: float = 120.0
    return_patience: float = 30.0
    minimum: int | None = None
    short: int = 0


@dataclass(frozen=True)
class Joined:
    """A new process is prepared and holds nothing yet."""

    replica: int


@dataclass(frozen=True)
class Waiting:
    """A member has left its generation and waits for a Form. It may be repeated.

    held, step: what it holds, -1 where nothing. A member that was setting up and is ready gives the step it set up.
    """

    replica: int
    generation: int
    held: int
    step: int
    ready: bool


@dataclass(frozen=True)
class AllWaiting:
    """A Waiting of each of these, each once and in this order: many that leave one generation alike are one event."""

    replicas: tuple[int, ...]
    generation: int
    held: int
    step: int
    ready: bool


@dataclass(frozen=True)
class Returned:
    """A Waiting for a coordinator that knows nothing: also the members of both generations, in rank order.

    Who says it has left its generation and takes no Form of an earlier coordinator from then on.
    """

    replica: int
    generation: int
    members: tuple[int, ...]
    held: int
    held_members: tuple[int, ...]
    step: int
    ready: bool


@dataclass(frozen=True)
class Exited:
    """The process is surely dead. reason: a sentence. fatal: the error would come again by itself."""

    replica: int
    reason: str
    fatal: bool = False


@dataclass(frozen=True)
class Silent:
    """The diagnosis says that the replica hangs. reason: a sentence."""

    replica: int
    reason: str


@dataclass(frozen=True)
class Finished:
    """The replica has passed the last barrier of the run; its exit is a good end."""

    replica: int


@dataclass(frozen=True)
class StopAsked:
    """No replica is started or let in from now on; the members end by themselves."""


@dataclass(frozen=True)
class Room:
    """So many more processes could be started now. Where it is never said there is room for all."""

    places: int


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True)
class Form:
    """Be this generation. to: who gets the message: all members, or the one that has lost it.

    Each settles to (held, step), receives what it holds under the new division from the members that are also in
    `before`, the division of `held`, and moves to (generation, step). restore: each sets itself up from the newest
    checkpoint or the seed instead; held and step are -1, for only the checkpoint knows the step.
    """

    to: tuple[int, ...]
    generation: int
    members: tuple[int, ...]
    before: tuple[int, ...]
    held: int
    step: int
    restore: bool
    reason: str


@dataclass(frozen=True)
class Gather:
    """The members end after the step they are in and say Waiting."""

    generation: int
    reason: str


@dataclass(frozen=True)
class Start:
    """Start one more process; `replica` is its number."""

    replica: int
    reason: str


@dataclass(frozen=True)
class Kill:
    """End this process, whatever it does."""

    replica: int
    reason: str


@dataclass(frozen=True)
class End:
    """The run cannot go on."""

    reason: str


Event = Joined | Waiting | AllWaiting | Returned | Exited | Silent | Finished | StopAsked | Room | Ticked
Action = Form | Gather | Start | Kill | End
