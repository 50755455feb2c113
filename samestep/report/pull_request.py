"""report.md: a run for the text of a pull request, its figures and its words. Pure."""

from samestep.report import tables
from samestep.report.page import QUIET, Facts, quiet
from samestep.report.tables import Rows

EVENTS = 10  # the last ones
# Each would begin a mark, a link, a name or HTML in Markdown
MARKED = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>#|~@&!"})


def markdown(facts: Facts, page: str) -> str:
    """page: the name of the HTML file beside it."""
    history = facts.history
    happened = [mark for mark in history.marks if mark.kind not in QUIET]
    more = len(happened) - EVENTS
    parts = [
        f"## {plain(facts.name)}: {plain(history.status)}",
        _table([("", "", ""), *tables.tiles(history)]),
        _list(facts.words),
        _table(tables.predicted(history)),
        f"{more} earlier events are in the report." if more > 0 else "",
        _list([*(f"step {mark.step}: {mark.text}" for mark in happened[-EVENTS:]), *quiet(history.marks)]),
        _against(facts),
        plain(tables.audit(history)),
        f"Final parameters: `{history.digest}`" if history.digest else "",
        f"[All curves, recipe and environment](<{page}>)",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _against(facts: Facts) -> str:
    if facts.other is None or not facts.other.recipe:
        return ""
    return _table([("key", facts.name, facts.other.name), *facts.other.recipe])


def plain(text: str) -> str:
    """On one line, without anything that Markdown or a forge would obey."""
    return " ".join(str(text).split()).translate(MARKED)


def _table(rows: Rows) -> str:
    if not rows:
        return ""
    head, *rest = [f"| {' | '.join(map(plain, row))} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def _list(sentences: list[str]) -> str:
    return "\n".join(f"- {plain(sentence)}" for sentence in sentences)
