"""Simulated runs as a picture: committed steps over the days, a line a policy, a mark a failure. Plain SVG."""

from collections.abc import Mapping, Sequence
from html import escape

from samestep import units

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 52, 70
POINTS, MARKS = 600, 400  # of a line, and of marks, at most: more cannot be told apart
DAY = 86_400.0
STYLE = """
  svg { --ground: #ffffff; --ink: #222222; --faint: #e3e3e3; --quiet: #666666;
        --restart: #c44e00; --survivors: #0072b2; --even: #888888 }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #16181c; --ink: #e8e8e8; --faint: #33363c; --quiet: #a0a4ab;
          --restart: #ff9a4d; --survivors: #5cb8f2; --even: #9a9a9a } }
  text { fill: var(--ink); font: 12px Helvetica, Arial, sans-serif }
"""

Curve = Sequence[tuple[float, int]]


def picture(
    title: str, under: str, days: float, ideal: int, curves: Mapping[str, Curve], blows: Sequence[float]
) -> str:
    """curves: by policy, seconds and committed steps. ideal: steps of a run without failures. blows: their seconds."""
    most = max([ideal, 1, *(steps for curve in curves.values() for _, steps in curve)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img"><title>{escape(title)}</title><style>{STYLE}</style>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" style="fill: var(--ground)"/>',
        _text(LEFT, 22, title, "font-weight: bold; font-size: 14px"),
        _text(LEFT, 40, under, "fill: var(--quiet)"),
        *_axes(days, most),
        _line([(0.0, 0), (days * DAY, ideal)], days, most, "even", "stroke-dasharray: 4 4; stroke-width: 1"),
    ]
    parts += [_line(_thinned(curve, POINTS), days, most, policy, "stroke-width: 2") for policy, curve in curves.items()]
    parts += _names({policy: curve[-1][1] for policy, curve in curves.items()} | {"even": ideal}, most)
    return "\n".join([*parts, *_marks(blows, days), "</svg>"]) + "\n"


def _axes(days: float, most: int) -> list[str]:
    parts = []
    for day in _ticks(days):
        x = _x(day * DAY, days)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" style="stroke: var(--faint)"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 34, f"{day:g}", "text-anchor: middle; fill: var(--quiet)"))
    for steps in _ticks(most):
        y = _y(steps, most)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" style="stroke: var(--faint)"/>')
        parts.append(_text(LEFT - 8, y + 4, units.count(steps), "text-anchor: end; fill: var(--quiet)"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*parts, _text(middle, HEIGHT - 12, "days", "text-anchor: middle; fill: var(--quiet)")]


def _ticks(most: float) -> list[float]:
    """From 0 upward, four to eight of them, in ones, twos or fives of a power of ten."""
    sizes = (part * 10.0**power for power in range(-4, 13) for part in (1, 2, 5))
    size = next(size for size in sizes if most / size <= 8)
    return [size * k for k in range(int(most / size) + 1)]


def _line(curve: Curve, days: float, most: int, colour: str, style: str) -> str:
    points = " ".join(f"{_x(at, days):.1f},{_y(steps, most):.1f}" for at, steps in curve)
    return f'<polyline points="{points}" style="fill: none; stroke: var(--{escape(colour)}); {style}"/>'


def _names(ends: Mapping[str, int], most: int) -> list[str]:
    """At the ends of the lines, and not over each other."""
    parts, free = [], float(HEIGHT)
    for name, steps in sorted(ends.items(), key=lambda end: end[1]):
        free = min(free - 16, _y(steps, most) + 4)
        said = f"{'without failures' if name == 'even' else name} {units.count(steps)}"
        parts.append(_text(WIDTH - RIGHT + 8, free, said, f"fill: var(--{name})"))
    return parts


def _marks(blows: Sequence[float], days: float) -> list[str]:
    every = max(1, -(-len(blows) // MARKS))
    shown, y = blows[::every], HEIGHT - BOTTOM + 6
    path = "".join(f"M{_x(at, days):.1f} {y}v10" for at in shown)
    said = f"{len(blows):,} lost" if every == 1 else f"{len(blows):,} lost, one in {every} shown"
    return [f'<path d="{path}" style="stroke: var(--ink); opacity: .6"/>', _text(WIDTH - RIGHT + 8, y + 10, said)]


def _thinned(curve: Curve, most: int) -> Curve:
    every = max(1, -(-len(curve) // most))
    return [*curve[::every], curve[-1]]


def _x(at: float, days: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at / (days * DAY)


def _y(steps: float, most: int) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * steps / most


def _text(x: float, y: float, said: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}">{escape(said)}</text>'
