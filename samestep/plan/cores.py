"""How long a step takes on replicas that share the cores of one machine, from what a pilot has measured at one number
of them. Pure arithmetic, seconds.

A micro-batch takes what it took, alone or beside others. What follows, the exchange and the update, is counted in
passes over memory; the count at the pilot's number of replicas, and what it took there, say what a pass is worth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from samestep.plan.resident import Held
from samestep.sync import tree
from samestep.sync.share import holders

ADD, COPY, READ = 1.0, 2 / 3, 1 / 3  # numbers moved an element, of the three of adding one tensor to another

Parts = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """What a pilot of `replicas` has measured on `cores`, of which each takes `threads`.

    alone, together: seconds of a micro-batch while the other replicas wait, and while all compute. exchange, update:
    of a step, with `copies` of each moment. rate, pass_: seconds an element, of the optimizer and of adding one float32
    tensor to another.
    """

    replicas: int
    copies: int
    cores: int
    threads: int
    alone: float
    together: float
    exchange: float
    update: float
    rate: float
    pass_: float

    @property
    def places(self) -> float:
        """Replicas that compute at once."""
        return max(1.0, self.cores / self.threads)


def finish(work: Sequence[float], places: float) -> float:
    """Seconds until all is done, where the pieces of `work` share so many places fairly (processor sharing)."""
    now, left = 0.0, sorted(work)
    while left:
        now += left[0] * max(1.0, len(left) / places)
        left = [each - left[0] for each in left[1:]]
    return now


def step(trial: Trial, held: Held, replicas: int) -> Parts:
    """Seconds of a step by part, of the strategies `exact` and `fast`."""
    return {
        "compute": computing(trial, held, replicas),
        "exchange": _scaled(trial.exchange, trial, held, replicas, exchanged),
        "update": _scaled(trial.update, trial, held, replicas, updated),
    }


def computing(trial: Trial, held: Held, replicas: int) -> float:
    """Seconds until all lanes of a step are computed. Islands are carried whole."""
    micro = trial.alone if replicas == 1 else trial.together
    units = [len(span) * held.lanes // held.units for span in tree.spans(held.units, replicas)]
    return finish([lanes * held.accumulate * micro for lanes in units], trial.places)


def _scaled(
    seconds: float, trial: Trial, held: Held, replicas: int, count: Callable[[Trial, Held, int], float]
) -> float:
    """What took `seconds` in the pilot, at another number of replicas: all do it at once, and share the places."""
    there = replace(held, copies=trial.copies)
    before = count(trial, there, trial.replicas) * max(1.0, trial.replicas / trial.places)
    return seconds * count(trial, held, replicas) * max(1.0, replicas / trial.places) / before


def exchanged(trial: Trial, held: Held, replicas: int) -> float:
    """Seconds of one replica: partial sums added up, squares for the norm, the clip."""
    sums = sum(len(tree.parts(held.lanes, span)) for span in tree.spans(held.lanes, replicas)) - 1
    return _owned(held, replicas) * trial.pass_ * (sums * ADD + READ + COPY)


def updated(trial: Trial, held: Held, replicas: int) -> float:
    """Seconds of one replica: the update made twice, what is new copied, and sums over all that rests, twice."""
    whole, owned = held.layout.total, _owned(held, replicas)
    mine = min(whole, len(holders(0, replicas, held.copies)) * owned)
    proposed = owned * (trial.rate + trial.pass_ * (1 + held.moments) * COPY)
    committed = mine * trial.rate + (whole - mine) * trial.pass_ * COPY
    return proposed + committed + 2 * (whole + held.moments * mine) * trial.pass_ * READ


def _owned(held: Held, replicas: int) -> float:
    return held.layout.total if held.strategy == "fast" else held.layout.total / replicas
