"""Who is to blame for a silence: what replicas were seen to do, and what follows. Pure functions of numbers.

`follow` folds one look after the other into a view, `diagnose` judges it. No single look proves anything: a replica
that has few processors is mostly found asleep or stopped, but it has used some time since the look before.
Times and durations are seconds.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

# How far a replica is within a step. The micro-batches of a step go through data, forward and backward again and again.
ORDER = {
    "start": 0,
    "data": 1,
    "forward": 1,
    "backward": 1,
    "exchange": 2,
    "update": 3,
    "evaluate": 4,
    "save": 5,
    "done": 6,
}
WAITS = {"start", "exchange", "update", "evaluate"}  # a replica may wait for others in these, and is not to blame
LONG = {"start", "save", "done"}  # imports, disks and the end of a process: each may sleep or work for long
LOOP = ("data", "forward", "backward", "exchange", "update")  # what each step goes through


@dataclass(frozen=True)
class Patience:
    """How long before what is named. stopped: a process that is. quiet: one that uses no processor, but `long` in
    phases that may sleep, and where all are stopped, which somebody has meant. slow: a replica that others wait for,
    and not before `slow_times` the longest such wait, but at most `long`. spinning: one that works and is taken for an
    endless loop, and not before `spinning_times` the longest that its phase has taken. gap: between two looks, after
    which all that was seen is forgotten: the observer, perhaps the whole host, did not run.
    """

    stopped: float = 2.0
    quiet: float = 5.0
    long: float = 60.0
    slow: float = 5.0
    slow_times: float = 5.0
    spinning: float = 60.0
    spinning_times: float = 20.0
    gap: float = 3.0
    idle_share: float = 0.004  # of a processor; 20 % of one shared by 8 replicas is six times that
    idle_least: float = 0.015  # seconds of processor: more than one tick of the clock that Linux counts them with


@dataclass(frozen=True)
class Look:
    """One look at a replica: its line on the board and its process, as in Board.read and vitals.read."""

    step: int
    phase: str
    since: float
    state: str
    cpu: float
    switches: int

    @property
    def line(self) -> tuple[int, str, float]:
        return self.step, self.phase, self.since


@dataclass(frozen=True)
class Watched:
    """What the looks at one replica say together. begun: its phase. quiet: since when it has used no processor, and
    `quiet_cpu` what it had used by then. stopped: since when it was.
    """

    last: Look
    begun: float
    quiet: float
    quiet_cpu: float
    stopped: float | None

    @property
    def place(self) -> tuple[int, int]:
        return self.last.step, ORDER[self.last.phase]


@dataclass(frozen=True)
class View:
    """at, first: times of the last and the first look. longest: that each phase was seen to take."""

    at: float
    first: float
    replicas: Mapping[int, Watched] = field(default_factory=dict)
    longest: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """replica: None where no replica is more to blame than the others. fence: whether it (without a replica, all) must
    be ended, for it will not go on. kind: stopped, stuck, deadlocked, spinning or slow.
    """

    kind: str
    replica: int | None
    step: int
    phase: str
    seconds: float
    sentence: str
    fence: bool


def follow(view: View | None, at: float, looks: Mapping[int, Look], patience: Patience) -> View:
    """The view after one more look at all replicas that run."""
    if view is None or at - view.at > patience.gap:
        view = View(at, at, longest=view.longest if view else {})
    replicas = {
        replica: _advance(view, view.replicas.get(replica), at, look, patience) for replica, look in looks.items()
    }
    return View(at, view.first, replicas, _longest(view, at, looks))


def diagnose(view: View, patience: Patience, cut: Collection[int] = ()) -> list[Finding]:
    """What is wrong, each replica named once at most. Those that only wait for another are never blamed.

    cut: replicas on a link that seems to be cut. They wait for it, and all others may wait for them; but whoever is
    stopped is stopped.
    """
    found = [*_stopped(view, patience), *_stuck(view, patience)]
    found += [] if cut else _deadlocked(view, patience)
    blamed = {finding.replica for finding in found}
    found += [finding for finding in _working(view, patience) if finding.replica not in blamed]
    return [finding for finding in found if finding.kind == "stopped" or finding.replica not in cut]


def _advance(view: View, before: Watched | None, at: float, look: Look, patience: Patience) -> Watched:
    if before is None or before.last.line != look.line or look.cpu < before.last.cpu:
        begun = min(at, max(look.since, view.first))
        before = Watched(look, begun, at, look.cpu, None)
    allowed = max(patience.idle_least, patience.idle_share * (at - before.quiet))
    if look.state == "R" or look.cpu - before.quiet_cpu > allowed:
        before = replace(before, quiet=at, quiet_cpu=look.cpu)
    stopped = None
    if look.state in "Tt":
        slept_on = (look.cpu, look.switches) == (before.last.cpu, before.last.switches)
        stopped = before.stopped if slept_on and before.stopped is not None else at
    return replace(before, last=look, stopped=stopped)


def _longest(view: View, at: float, looks: Mapping[int, Look]) -> dict[str, float]:
    """A phase that was seen has ended when the line that is seen next was written, or before: by a look at most."""
    longest = dict(view.longest)
    for replica, look in looks.items():
        before = view.replicas.get(replica)
        if before is None or before.last.line == look.line:
            continue
        phase = before.last.phase
        longest[phase] = max(longest.get(phase, 0.0), max(view.at, look.since) - before.begun)
        if look.step > before.last.step:  # what no look has met is shorter than the time between two
            for passed in LOOP:
                longest.setdefault(passed, at - view.at)
    return longest


def _stopped(view: View, patience: Patience) -> Iterator[Finding]:
    stopped = {replica: w.stopped for replica, w in view.replicas.items() if w.stopped is not None}
    on_purpose = len(stopped) == len(_unfinished(view)) > 1
    for replica, since in stopped.items():
        seconds = view.at - since
        if seconds >= patience.stopped:
            fence = not on_purpose or seconds >= patience.long
            then = _ended(view) if fence else "so are all others; SIGCONT lets them go on, and nothing else is done yet"
            yield _finding("stopped", view, replica, seconds, "is stopped (SIGSTOP or a debugger)", then, fence)


def _stuck(view: View, patience: Patience) -> Iterator[Finding]:
    alone = len(_unfinished(view)) == 1
    for replica, watched in view.replicas.items():
        may_wait = watched.last.phase in WAITS and not alone
        if _is_quiet(view, watched, patience) and not may_wait:
            disk = watched.last.state == "D"
            what = "waits for a disk or a file server" if disk else "sleeps and uses no processor"
            yield _finding("stuck", view, replica, view.at - watched.quiet, what, _ended(view), True)


def _deadlocked(view: View, patience: Patience) -> Iterator[Finding]:
    """All wait, so nobody will go on. Those that wait elsewhere than most are to blame, if they are few."""
    live = _unfinished(view)
    if len(live) < 2 or not all(w.last.phase in WAITS and _is_quiet(view, w, patience) for w in live.values()):
        return
    counts = Counter(w.place for w in live.values())
    most = max(counts, key=lambda place: (counts[place], place))
    odd = [replica for replica, w in live.items() if w.place != most]
    odd = odd if 2 * len(odd) <= len(live) else []
    seconds = min(view.at - w.quiet for w in live.values())
    groups = [_at(live, place) for place in sorted(counts)]
    places = "; ".join(f"{_names(ranks)} {_where(live[ranks[0]].last).rstrip(',')}" for ranks in groups)
    said = f"all replicas wait for one another for {seconds:.0f} s, {places}: "
    if not odd:
        last = next(iter(live.values())).last
        all_end = said + "none stands apart, so all are ended and begin again"
        yield Finding("deadlocked", None, last.step, last.phase, seconds, all_end, True)
    for replica in odd:
        last = live[replica].last
        sentence = f"{said}replica {replica} stands apart, {_ended(view)}"
        yield Finding("deadlocked", replica, last.step, last.phase, seconds, sentence, True)


def _working(view: View, patience: Patience) -> Iterator[Finding]:
    """Those that work, but others wait for them, or for far too long."""
    for replica, watched in _unfinished(view).items():
        phase, seconds = watched.last.phase, view.at - watched.begun
        if phase in LONG or view.at - watched.quiet >= patience.quiet / 2 or not _is_awaited(view, replica, patience):
            continue
        usual = view.longest.get(phase)
        held = _held_up(view, replica, patience)
        if usual is not None and seconds >= max(patience.spinning, patience.spinning_times * usual):
            what = f"works without end, where {usual:.1f} s were the longest so far,"
            yield _finding("spinning", view, replica, seconds, what, _ended(view), True)
        elif held and phase != "evaluate" and (phase not in WAITS or seconds >= patience.slow):
            then = f"{_names(held)} wait{'s' * (len(held) == 1)} for it, and nothing is done"
            yield _finding("slow", view, replica, seconds, "works", then, False)


def _is_awaited(view: View, replica: int, patience: Patience) -> bool:
    """Whether a replica that works cannot itself wait for another: all others are further on, or wait and sleep."""
    mine = view.replicas[replica]
    others = [w for r, w in _unfinished(view).items() if r != replica]
    asleep = [w.last.phase in WAITS and _is_quiet(view, w, patience) for w in others]
    return mine.last.phase not in WAITS or all(w.place > mine.place or s for w, s in zip(others, asleep, strict=True))


def _held_up(view: View, replica: int, patience: Patience) -> list[int]:
    """The replicas at the same place or further on that have waited for longer than they are used to."""
    mine = view.replicas[replica]
    waiting = {r: w for r, w in _unfinished(view).items() if r != replica and w.last.phase in ("exchange", "update")}
    return [
        r for r, w in waiting.items() if w.place >= mine.place and view.at - w.begun >= _tolerated(view, w, patience)
    ]


def _tolerated(view: View, waiting: Watched, patience: Patience) -> float:
    usual = view.longest.get(waiting.last.phase, patience.long)
    return min(patience.long, max(patience.slow, patience.slow_times * usual))


def _is_quiet(view: View, watched: Watched, patience: Patience) -> bool:
    limit = patience.long if watched.last.phase in LONG else patience.quiet
    return watched.stopped is None and view.at - watched.quiet >= limit


def _unfinished(view: View) -> dict[int, Watched]:
    return {replica: w for replica, w in view.replicas.items() if w.last.phase != "done"}


def _at(live: Mapping[int, Watched], place: tuple[int, int]) -> list[int]:
    return [replica for replica, w in live.items() if w.place == place]


def _finding(kind: str, view: View, replica: int, seconds: float, what: str, then: str, fence: bool) -> Finding:
    last = view.replicas[replica].last
    sentence = f"replica {replica} {what} {_where(last)} for {seconds:.0f} s: {then}"
    return Finding(kind, replica, last.step, last.phase, seconds, sentence, fence)


def _where(last: Look) -> str:
    if last.step:
        return f"in step {last.step}, {last.phase},"
    return "at the start" if last.phase == "start" else f"before the first step, {last.phase},"


def _names(ranks: list[int]) -> str:
    return ("replica " if len(ranks) == 1 else "replicas ") + ", ".join(map(str, ranks))


def _ended(view: View) -> str:
    return "it is ended, the others go on" if len(view.replicas) > 1 else "it is ended"
