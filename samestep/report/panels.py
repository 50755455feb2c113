"""The charts of a report: what is drawn, and what stands beside it at each place of the cursor. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from samestep.report import chart
from samestep.report.chart import HEIGHT, WIDTH, Column, Scale
from samestep.report.read import History, Mark, Numbers
from samestep.report.words import NAMES, PARTS, number
from samestep.units import duration, rate, size

LINES = 4  # replicas that get a line each; of more, the least and the most are drawn
EVERYWHERE = ("failure", "resume")  # marks that are drawn through every chart
APART = WIDTH / 200  # between two marks of one kind
THIN = 0.005  # share of the time that is too little for an area

Show = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """css: the class that colours it. path, area: of SVG. values, ys: at each column, for the cursor."""

    name: str
    css: str
    path: str = ""
    area: str = ""
    values: list[str] = field(default_factory=list)
    ys: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """ticks: (share of the height from above in %, text). note: beside the title."""

    key: str
    title: str
    lines: list[Line]
    ticks: list[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Charts:
    """xs: of each column. marks: those drawn in the strip of events."""

    steps: list[int]
    xs: list[float]
    panels: list[Panel]
    ticks: list[tuple[str, str]]
    marks: list[tuple[float, Mark]]

    @property
    def lines(self) -> list[tuple[float, Mark]]:
        return [each for each in self.marks if each[1].kind in EVERYWHERE]


@dataclass(frozen=True)
class Frame:
    """What all charts of a report share: which steps share a column, the last step of each, and its x."""

    places: list[range]
    ends: list[int]
    xs: list[float]
    last: int


def charts(history: History, other: History | None = None, name: str = "") -> Charts:
    """other: another run, called `name`, whose losses are drawn behind those of this one."""
    places = chart.groups(history.steps)
    ends = [history.steps[at[-1]] for at in places]
    last = max([1, *ends, *(mark.step for mark in history.marks)])
    x = chart.across(min(history.steps[:1] or [0]), last)
    frame = Frame(places, ends, [x(end) for end in ends], last)
    found = [_losses(history, frame, other, name), *(_plain(history, frame, *each) for each in PLAIN)]
    found += [_phases(history, frame), _memory(history, frame)]
    steps = [round(tick) for tick in chart.ticks(Scale(0, last)) if 1 <= tick <= last and tick == round(tick)]
    marks = _apart([(max(0.0, x(mark.step)), mark) for mark in history.marks])
    shown = [panel for panel in found if any(any(line.ys) for line in panel.lines)]
    return Charts(ends, frame.xs, shown, [(_share(x(step) / WIDTH), f"{step:,}") for step in steps], marks)


# Key, title, whether the axis begins at 0, and how a value is written
PLAIN: tuple[tuple[str, str, bool, Show], ...] = (
    ("tokens_per_second", "Tokens a second", True, lambda value: rate(value, "tokens")),
    ("gradient_norm", "Gradient norm", False, number),
    ("learning_rate", "Learning rate", True, lambda value: f"{value:.3g}"),
    ("bytes", "Sent by replica 0, a step", True, size),
)


def _losses(history: History, frame: Frame, other: History | None, name: str) -> Panel:
    ours = chart.columns(history.series["loss"], frame.places)
    held = dict(history.held_out)
    theirs = _aligned(other, history, frame) if other else []
    points = [v for column in (*ours, *theirs) for v in (column.low, column.high) if v is not None]
    axis = chart.scale([*points, *(loss for step, loss in held.items() if step)])
    lines = [_line(f"loss of {name}", "other", theirs, frame, axis, number)] if theirs else []
    lines.append(_line("loss", "main", ours, frame, axis, number))
    if held:
        lines.append(_held_out(held, frame, axis, history.steps[0] if history.steps else 0))
    return _panel("loss", "Loss", lines, axis, number)


def _held_out(held: Mapping[int, float], frame: Frame, axis: Scale, first: int) -> Line:
    """A line from one evaluation to the next; the cursor shows the last one before it."""
    x = chart.across(first, frame.last)
    path = chart.line((max(0.0, x(step)), axis.y(loss)) for step, loss in sorted(held.items()) if step >= first)
    values, known, rest = [], None, sorted(held.items())
    for end in frame.ends:
        while rest and rest[0][0] <= end:
            known = rest.pop(0)[1]
        values.append(known)
    ys = [None if value is None else round(axis.y(value), 1) for value in values]
    return Line("held-out loss", "held", path, "", ["" if v is None else number(v) for v in values], ys)


def _aligned(other: History, history: History, frame: Frame) -> list[Column]:
    """The losses of another run at the steps of this one."""
    theirs = dict(zip(other.steps, other.series["loss"], strict=True))
    return chart.columns([theirs.get(step) for step in history.steps], frame.places)


def _plain(history: History, frame: Frame, key: str, title: str, zero: bool, show: Show) -> Panel:
    found = chart.columns(history.series[key], frame.places)
    axis = chart.scale([v for column in found for v in (column.low, column.high) if v is not None], zero)
    return _panel(key, title, [_line("", "main", found, frame, axis, show)], axis, show)


def _phases(history: History, frame: Frame) -> Panel:
    """Stacked areas, the computing first."""
    found = chart.phases(history.spent, frame.ends)
    whole = sum(sum(each.get(part, 0.0) for part in PARTS) for each in found)
    parts = [part for part in PARTS if sum(each.get(part, 0.0) for each in found) > THIN * whole]
    sums = [sum(each.get(part, 0.0) for part in parts) for each in found if each]
    axis = chart.scale(chart.capped(sums), zero=True)
    below = [0.0] * len(found)
    lines = []
    for part in parts:
        above = [base + each.get(part, 0.0) for base, each in zip(below, found, strict=True)]
        edges = [
            (x, axis.y(low), axis.y(high)) if each else None
            for x, low, high, each in zip(frame.xs, below, above, found, strict=True)
        ]
        values = [duration(each[part]) if part in each else "" for each in found]
        ys = [None if edge is None else round(edge[2], 1) for edge in edges]
        lines.append(Line(NAMES.get(part, part), part, "", chart.band(edges), values, ys))
        below = above
    cut = sum(axis.y(each) < 0 for each in sums)
    return _panel("phases", "Time by phase, a step", lines, axis, duration, f"{cut} cut at the top" if cut else "")


def _memory(history: History, frame: Frame) -> Panel:
    found = chart.memories(history.spent, frame.ends)
    if len(found) > LINES:
        columns = list(zip(*found.values(), strict=True))
        found = {"least": [_extreme(min, each) for each in columns], "most": [_extreme(max, each) for each in columns]}
    axis = chart.scale([value for values in found.values() for value in values if value is not None], zero=True)
    lines = [
        _line(name, f"r{at}", [Column(value, value, value) for value in values], frame, axis, size)
        for at, (name, values) in enumerate(found.items())
    ]
    return _panel("memory", "Memory", lines, axis, size)


def _extreme(of: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return of(known) if known else None


def _line(name: str, css: str, found: Sequence[Column], frame: Frame, axis: Scale, show: Show) -> Line:
    ys: Numbers = [None if each.mean is None else round(axis.y(each.mean), 1) for each in found]
    path = chart.line(None if y is None else (x, y) for x, y in zip(frame.xs, ys, strict=True))
    wide = any(each.low != each.high for each in found)
    area = chart.band([_edge(x, each, axis) for x, each in zip(frame.xs, found, strict=True)]) if wide else ""
    return Line(name, css, path, area, [_said(each, show) for each in found], ys)


def _edge(x: float, column: Column, axis: Scale) -> tuple[float, float, float] | None:
    if column.low is None or column.high is None:
        return None
    return x, axis.y(column.low), axis.y(column.high)


def _said(column: Column, show: Show) -> str:
    """A mean, and how far its steps lie apart."""
    if column.mean is None or column.low is None or column.high is None:
        return ""
    apart = "" if column.low == column.high else f" ({show(column.low)} to {show(column.high)})"
    return show(column.mean) + apart


def _panel(key: str, title: str, lines: list[Line], axis: Scale, show: Show, note: str = "") -> Panel:
    ticks = [(_share(axis.y(tick) / HEIGHT), _tick(tick, show)) for tick in chart.ticks(axis)]
    return Panel(key, title, lines, ticks, "logarithmic" if axis.log else note)


def _tick(value: float, show: Show) -> str:
    """Round, so without the digits that a measured value has; a rate without its unit."""
    if show is number:
        return f"{value:.6g}"
    if value == 0:
        return "0"
    return show(value).removesuffix(" tokens/s").replace(".0 ", " ")


def _share(part: float) -> str:
    return f"{100 * part:.2f}%"


def _apart(marks: Sequence[tuple[float, Mark]]) -> list[tuple[float, Mark]]:
    """Without those that would cover another one of their kind."""
    found: dict[tuple[str, int], tuple[float, Mark]] = {}
    for x, mark in marks:
        found.setdefault((mark.kind, math.floor(x / APART)), (x, mark))
    return list(found.values())
