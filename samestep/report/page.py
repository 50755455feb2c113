"""A report as one HTML file that opens from disk: no request, no script and no style but those inside it.

All text is escaped by jinja2; the numbers for the cursor travel as JSON in which `<`, `>` and `&` are escaped. The
policy in its head names the digests of the one script and the one style, so nothing else would run even if it got in.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from samestep.plan.cost import Price
from samestep.report import tables
from samestep.report.panels import Charts, charts
from samestep.report.read import History, Mark
from samestep.report.tables import Rows
from samestep.report.words import NAMES, beside, by_replica, shares, speeds, words

FOLDER = Path(__file__).parent / "template"
MOST_EVENTS = 200  # in the table of what happened, the last ones
QUIET = ("checkpoint", "best")  # marks that are counted there
DIGESTS = 200  # of steps, the last ones


@dataclass(frozen=True)
class Other:
    """Another run: its name, its history, and (key, ours, theirs) of recipe keys that differ. parted: in a sentence."""

    name: str
    history: History
    recipe: Rows
    parted: str


@dataclass(frozen=True)
class Facts:
    """What a report is made of. changed: (key, value, default) of the recipe's keys that are not left as they are."""

    name: str
    history: History
    recipe: str
    changed: Rows
    other: Other | None = None
    price: Price | None = None  # of an hour of one replica
    notes: list[str] = field(default_factory=list)  # what could not be said, and why

    @property
    def words(self) -> list[str]:
        found = words(self.history)
        if self.other is not None:
            compared = beside(self.other.name, speeds(self.history), speeds(self.other.history))
            found += [each for each in (self.other.parted, compared) if each]
        return [*found, *self.notes]


def page(facts: Facts) -> str:
    """The HTML."""
    style, script = (_own(name) for name in ("report.css", "report.js"))
    history, other = facts.history, facts.other
    drawn = charts(history, other.history if other else None, other.name if other else "")
    html: str = _template().render(
        facts=facts,
        history=history,
        charts=drawn,
        numbers=_numbers(drawn),
        division=_division(history),
        tables=tables,
        events=[mark for mark in history.marks if mark.kind not in QUIET][-MOST_EVENTS:],
        quiet=quiet(history.marks),
        digests=history.digests[-DIGESTS:],
        style=style,
        script=script,
        policy=policy(style, script),
    )
    return html


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy of a page with one style and one script."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def quiet(marks: Sequence[Mark]) -> list[str]:
    """A sentence for each kind of mark that has no line of its own."""
    steps = {kind: [mark.step for mark in marks if mark.kind == kind] for kind in QUIET}
    saved, best = steps["checkpoint"], steps["best"]
    many = f"{len(saved):,} checkpoint{'s'[: len(saved) > 1]} written, the last one after step"
    found = [f"{many} {saved[-1]:,}."] if saved else []
    return found + ([f"The lowest held-out loss was that after step {best[-1]:,}."] if best else [])


def _division(history: History) -> list[tuple[str, str, float, float]]:
    """(class, name, from where, width), in % of the bar."""
    found, at = [], 0.0
    for part, share in shares(by_replica(history.spent)).items():
        found.append((part, NAMES.get(part, part), at, 100 * share))
        at += 100 * share
    return found


def _numbers(drawn: Charts) -> dict[str, Any]:
    """For the cursor."""
    panels = {panel.key: [{"v": line.values, "y": line.ys} for line in panel.lines] for panel in drawn.panels}
    return {"steps": drawn.steps, "xs": [round(x, 1) for x in drawn.xs], "panels": panels}


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _own(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template("report.html")
