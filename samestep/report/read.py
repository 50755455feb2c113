"""From the journal of a run to plain numbers: series by step, marks, where the time went. Pure.

A run that goes on from a checkpoint computes later steps again; what they were before is dropped here, and only the
seconds that they had taken are kept, as lost. What a step or an event lacks is None, never a zero.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samestep.events import Event

SERIES = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "seconds", "bytes")
COMPUTE = ("data", "forward", "backward")  # the phases in which a replica waits for nobody

Numbers = list[float | None]


@dataclass(frozen=True)
class Mark:
    """kind: failure, trouble, resume, joined, checkpoint, best or end. step: the last one that was committed then."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True)
class Spent:
    """Where a replica's time went in the `steps` up to `step`: seconds by phase. Bytes of memory, and sent in these."""

    step: int
    steps: int
    replica: str  # the process, named by rank and, where there are several, host
    host: str
    lanes: int
    seconds: Mapping[str, float]
    bytes_sent: int
    memory: int
    peak: int


@dataclass
class History:
    """steps: 1, 2, ... of the model. series: by name, a number a step. held_out: (step, loss).

    crews: (first step, replicas) of each generation. again: steps that were computed again; lost: the seconds of the
    first time, and lost_hours: hours of all replicas. lives: seconds of each start of the run, as far as is known.
    """

    opened: Event = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    rows: list[Event] = field(default_factory=list)  # epoch, rows, tokens of each step; for the audit
    series: dict[str, Numbers] = field(default_factory=lambda: {name: [] for name in SERIES})
    held_out: list[tuple[int, float]] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    crews: list[tuple[int, int]] = field(default_factory=list)
    digests: list[tuple[int, str]] = field(default_factory=list)
    again: int = 0
    lost: float = 0.0
    lost_hours: float = 0.0
    lives: list[float] = field(default_factory=list)
    digest: str | None = None  # of the final parameters
    evaluated: Event = field(default_factory=dict)  # the last one
    sample: str | None = None
    piloted: Event = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)  # replicas that have run there
    status: str = "not finished"  # finished, stopped (on request) or failed


def read(events: Sequence[Event]) -> History:
    """The history of one run, from the events of its journal in their order."""
    reader = _Reader()
    for event in events:
        reader.take(event)
    return reader.history


def replicas_at(history: History, step: int) -> int:
    """That shared the step; those that the run was opened with where the journal does not say."""
    at = bisect_right(history.crews, step, key=lambda crew: crew[0])
    return history.crews[at - 1][1] if at else int(history.opened.get("replicas", 1))


def hours(history: History, steps: Sequence[int], seconds: Sequence[float | None]) -> float:
    """Hours of all replicas that these steps have taken."""
    spans = zip(steps, seconds, strict=True)
    return sum(replicas_at(history, step) * (took or 0.0) for step, took in spans) / 3600


class _Reader:
    """What has to be remembered from one line to the next."""

    def __init__(self) -> None:
        self.history = History()
        self._places: dict[int, Event] = {}  # by rank, its last start
        self._sent: dict[int, int] = {}  # by process, the bytes that it had sent in all
        self._told: dict[int, int] = {}  # the same as of its last account
        self._began = 0.0
        self._base = 0  # the step that all set themselves up after
        self._takes = {
            "opened": self._opened,
            "started": self._started,
            "formed": self._formed,
            "step": self._step,
            "evaluated": self._evaluated,
            "spent": self._spent,
            "resumed": self._resumed,
            "piloted": lambda event: setattr(self.history, "piloted", event),
            "saved": lambda event: setattr(self.history, "digest", event["digest"]),
            "sample": self._sample,
            "ended": self._ended,
            "finished": self._finished,
        }

    def take(self, event: Event) -> None:
        kind = event.get("event", "")
        if kind in self._takes:
            self._takes[kind](event)
        if kind in MARKED and (text := MARKED[kind][1](event)):
            self._mark(event.get("step", self._last), MARKED[kind][0], text)

    @property
    def _last(self) -> int:
        return self.history.steps[-1] if self.history.steps else 0

    def _mark(self, step: int, kind: str, text: str) -> None:
        self.history.marks.append(Mark(max(0, step), kind, text))

    def _opened(self, event: Event) -> None:
        self.history.opened = event
        self._began = event.get("time", 0.0)

    def _started(self, event: Event) -> None:
        history = self.history
        self._places[event["rank"]] = event
        history.kernels = history.kernels or event.get("kernels", {})
        names = {(place["host"], place["pid"]) for place in self._places.values()}
        for host in {host for host, _ in names}:
            count = sum(each == host for each, _ in names)
            history.hosts[host] = max(history.hosts.get(host, 0), count)

    def _formed(self, event: Event) -> None:
        before = self.history.crews[-1][1] if self.history.crews else event["replicas"]
        self.history.crews.append((max(self._base, event["step"]) + 1, event["replicas"]))
        self._places.clear()
        if event["generation"] > 1:
            kind = "joined" if event["replicas"] > before else "failure"
            self._mark(event["step"], kind, event["reason"])

    def _step(self, event: Event) -> None:
        history = self.history
        seconds = event.get("seconds")
        history.steps.append(event["step"])
        history.rows.append({key: event[key] for key in ("event", "step", "epoch", "rows", "tokens") if key in event})
        found = {**event, "bytes": self._since(self._sent, event)}
        found["tokens_per_second"] = event["tokens"] / seconds if seconds else None
        for name, values in history.series.items():
            values.append(found.get(name))
        if "digest" in event:
            history.digests.append((event["step"], event["digest"]))

    def _since(self, known: dict[int, int], event: Event) -> int | None:
        """Bytes that the process has sent since it was last heard of. None where it is another one."""
        place = self._places.get(event.get("rank", 0))
        if place is None or "bytes_sent" not in event:
            return None
        before, known[place["pid"]] = known.get(place["pid"], 0), event["bytes_sent"]
        return int(event["bytes_sent"] - before)

    def _evaluated(self, event: Event) -> None:
        if event["loss"] is not None:
            self.history.held_out.append((event["step"], event["loss"]))
        self.history.evaluated = event

    def _spent(self, event: Event) -> None:
        place = self._places.get(event["rank"], {"host": "?", "pid": -1, "lanes": [0, 0]})
        several = len({each["host"] for each in self._places.values()}) > 1
        name = f"replica {event['rank']}" + (f" on {place['host']}" if several else "")
        lanes, sent = place["lanes"][1] - place["lanes"][0], self._since(self._told, event)
        numbers = event["seconds"], sent or 0, event["memory"], event["peak"]
        self.history.spent.append(Spent(event["step"], event["steps"], name, place["host"], lanes, *numbers))

    def _sample(self, event: Event) -> None:
        if "step" not in event:
            self.history.sample = event["prompt"] + event["text"]

    def _resumed(self, event: Event) -> None:
        history, step = self.history, event["step"]
        self._base, kept = step, sum(each <= step for each in history.steps)
        again = history.steps[kept:]
        history.again += len(again)
        seconds = history.series["seconds"][kept:]
        history.lost += sum(filter(None, seconds))
        history.lost_hours += hours(history, again, seconds)
        for column in (history.steps, history.rows, *history.series.values()):
            del column[kept:]  # type: ignore[attr-defined]
        history.held_out = [point for point in history.held_out if point[0] <= step]
        history.crews = [crew for crew in history.crews if crew[0] <= max(1, step)]
        history.spent = [each for each in history.spent if each.step <= step]
        self._places.clear()
        if "replicas" in event:  # a new life of the run, not a new generation of this one
            self._began, history.status = event.get("time", 0.0), "not finished"
        computed = f"; {len(again)} steps were computed again" if again else ""
        self._mark(step, "resume", (f"resumed after step {step}" if step else "begun again") + computed)

    def _ended(self, event: Event) -> None:
        asked = event["exit_code"] in (75, 130)
        self._live(event["time"] - self._began)
        self._mark(self._last, "end" if asked else "failure", event["reason"])
        self.history.status = "stopped" if asked else "failed"

    def _finished(self, event: Event) -> None:
        self.history.status, self.history.digest = "finished", event["digest"]
        self._live(event["seconds"])

    def _live(self, seconds: float) -> None:
        if self._began:
            self.history.lives.append(seconds)


def _saved(event: Event) -> str:
    elsewhere = f"; {event['refused']}; it is in {event['folder']}" if "refused" in event else ""
    return f"checkpoint of step {event['step']}{elsewhere}"


def _reason(event: Event) -> str:
    return str(event["reason"])


def _early(event: Event) -> str:
    return f"the held-out loss did not get lower for {event['waited']} evaluations"


# Events that are no more than a mark -> its kind and its text. Who has left is named by the generation after it.
MARKED: dict[str, tuple[str, Any]] = {
    "not_finite": ("failure", lambda event: f"NaN or infinite in lane {event['lane']}, {event['layer'] or 'the loss'}"),
    "silent": ("trouble", _reason),
    "unreachable": ("trouble", _reason),
    "save_failed": ("trouble", _reason),
    "checkpoint_failed": ("trouble", _reason),
    "rotation_failed": ("trouble", _reason),
    "best_failed": ("trouble", _reason),
    "journal_failed": ("trouble", _reason),
    "shared_memory_failed": ("trouble", _reason),
    "checkpoint": ("checkpoint", _saved),
    "best": ("best", lambda event: f"best model so far, held-out loss {event['loss']:.4f}"),
    "stopped_early": ("end", _early),
}
