"""Which faults a run is to meet, and when: a pure function of a seed. launch/strike.py does them to a real run."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = {
    "kill": "killed",
    "two": "killed at once",
    "pause": "stopped for {seconds:g} s",
    "hang": "stopped for good",
    "halt": "all killed; the run is resumed on {replicas}",
    "torn": "all killed; a file of the newest checkpoint is cut short, and the run is resumed on {replicas}",
    "flip": "all killed; a bit of the newest checkpoint is flipped, and the run is resumed on {replicas}",
    "full": "no room on the disk for the next checkpoint",
}
ENDS = ("halt", "torn", "flip")  # the life of the run; it is resumed
DAMAGES = ("torn", "flip")
LONGEST = 1.0  # seconds of a pause: half of what the engine waits before it ends a replica that is stopped


@dataclass(frozen=True)
class Scope:
    """What of a run its faults depend on. most: replicas it may be resumed on. ends_silent: who hangs is ended."""

    steps: int
    replicas: int
    most: int
    checkpoint_every: int
    ends_silent: bool = True


@dataclass(frozen=True)
class Fault:
    """It strikes `delay` of a step after the commit of `step` (0: the start). picks: whom, of those who live then.

    seconds: of a pause. replicas: that the run is resumed on. file, byte: the place of a damage, as shares of 1.
    """

    kind: str
    step: int
    delay: float
    picks: tuple[int, int]
    seconds: float
    replicas: int
    file: float
    byte: float


def schedule(seed: int, scope: Scope, count: int, kinds: Sequence[str] = tuple(KINDS)) -> tuple[Fault, ...]:
    """`count` faults of those `kinds` that can befall the run, in the order of time. None comes a second time before
    all have come, nor strikes after the same step as another: a step that kills again and again is given up, rightly.
    """
    draw = random.Random(seed)
    fit = [kind for kind in kinds if _steps(kind, scope)]
    found: list[Fault] = []
    order = [kind for _ in range(count) for kind in draw.sample(fit, len(fit))]
    for kind in order[:count]:
        taken = {fault.step for fault in found}
        free = [step for step in _steps(kind, scope) if step not in taken]
        found.append(_fault(draw, kind, draw.choice(free or _steps(kind, scope)), scope))
    return tuple(sorted(found, key=lambda fault: (fault.step, fault.delay)))


def words(fault: Fault) -> str:
    return KINDS[fault.kind].format(seconds=fault.seconds, replicas=fault.replicas)


def victims(fault: Fault, living: int) -> tuple[int, ...]:
    """Whom of `living` replicas it befalls."""
    if fault.kind in (*ENDS, "full"):
        return tuple(range(living))
    first = fault.picks[0] % living
    if fault.kind != "two" or living == 1:
        return (first,)
    return first, (first + 1 + fault.picks[1] % (living - 1)) % living


def _steps(kind: str, scope: Scope) -> Sequence[int]:
    """The steps after which it can strike."""
    every = scope.checkpoint_every
    if kind in DAMAGES:
        return range(every + 1, scope.steps) if every else ()
    if kind == "full":  # it must have room again before the model is written
        return range(every - 1, scope.steps - 2, every) if every else ()
    if (kind == "two" and scope.replicas < 2) or (kind == "hang" and not scope.ends_silent):
        return ()
    return range(scope.steps)


def _fault(draw: random.Random, kind: str, step: int, scope: Scope) -> Fault:
    others = [n for n in range(1, min(scope.most, scope.replicas + 1) + 1) if n != scope.replicas]
    return Fault(
        kind,
        step,
        delay=0.0 if kind == "full" else int(draw.random() * 1000) / 1000,
        picks=(draw.randrange(1 << 16), draw.randrange(1 << 16)),
        seconds=round(draw.uniform(0.05, LONGEST), 3),
        replicas=draw.choice(others or [scope.replicas]),
        file=draw.random(),
        byte=draw.random(),
    )
