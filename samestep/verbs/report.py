"""samestep report: one HTML file that explains a run, and report.md for pull requests beside it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samestep.errors import ClusterError, DataError, RecipeError, SamestepError
from samestep.events import Event
from samestep.recipe.load import load
from samestep.recipe.schema import Recipe
from samestep.recover import alternate
from samestep.recover.journal import NAME
from samestep.verbs import compare
from samestep.verbs.compare import Comparison, Difference

PAGE = "report.html"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """words: what the report says of where the time went."""

    page: str
    markdown: str
    bytes: int
    status: str
    words: list[str]


def report(
    run: Path,
    to: Path | None = None,
    against: Path | None = None,
    price: float | None = None,
    prices: Path | None = None,
) -> Written:
    """Write the report of `run` to `to` (default: report.html in it), and a .md file of that name beside it.

    against: another run to compare with. price: dollars for an hour of one replica; else run.price of the recipe says
    it, or for GPUs the table `prices` (default: that of samestep plan).
    Raises DataError for no run or a damaged journal, RecipeError for no price table, ClusterError where the files
    cannot be written.
    """
    from samestep.report.page import Facts, page
    from samestep.report.pull_request import markdown
    from samestep.report.read import read

    to = to or run / PAGE
    events = _events(run)
    recipe, changed, notes = _recipe(run)
    history = read(events)
    facts = Facts(run.resolve().name, history, recipe, changed, None, None, notes)
    said = next((value for key, value, *_ in changed if key == "run.price"), None)
    facts = replace(facts, price=_price(price, said, history, prices))
    if against is not None:
        facts = replace(facts, other=_other(run, events, against))
    html = page(facts)
    _write(to, html)
    _write(beside := to.with_suffix(".md"), markdown(facts, to.name))
    return Written(str(to), str(beside), len(html.encode()), facts.history.status, facts.words)


@contextmanager
def reported(run: Path, say: Say) -> Iterator[None]:
    """Writes the report of a run that ends in here, well or not. What keeps it from that is said, and fails nothing."""
    try:
        yield
    except Exception:
        _attempt(run, say)
        raise
    _attempt(run, say)


def _attempt(run: Path, say: Say) -> None:
    try:
        report(run)
    except SamestepError as error:
        say(f"no report of this run yet: {error}")


def as_dict(written: Written) -> dict[str, Any]:
    return asdict(written)


def lines(written: Written) -> list[str]:
    return [*written.words, f"{written.page} ({written.bytes / 1000:,.0f} kB) and {written.markdown}"]


def _events(run: Path) -> list[Event]:
    if not (run / NAME).is_file():
        raise DataError(f"{run} holds no {NAME}; samestep report takes the folder of a run")
    return alternate.events_of(run)


def _recipe(run: Path) -> tuple[str, list[tuple[str, ...]], list[str]]:
    """Its text, the keys that are not left as they are by default, and what could not be said."""
    try:
        text = (run / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
        found = load(run / "recipe.yaml").model_dump()
    except OSError as error:
        return "", [], [f"The recipe cannot be read: {error.strerror}."]
    except RecipeError as error:
        return text, [], [f"This version does not read the recipe: {error}."]
    defaults = compare.flat(Recipe(steps=1).model_dump()) | {"steps": None}  # one length is needed, none is given
    return text, _rows(compare.differences(compare.flat(found), defaults)), []


def _price(asked: float | None, recipe: str | None, history: Any, table: Path | None) -> Any:
    """Of an hour of one replica, which has one GPU. None: nobody knows it."""
    from samestep.plan import cost

    if asked is not None or recipe is not None:
        said = (asked, "--price") if asked is not None else (float(recipe or 0), "run.price")
        return cost.Price(*said, "")
    return cost.price_of(history.kernels.get("gpu", ""), cost.prices(table or cost.PRICES))


def _other(run: Path, events: Sequence[Event], against: Path) -> Any:
    from samestep.report.page import Other
    from samestep.report.read import read

    theirs, name = _events(against), against.resolve().name
    parted = compare.first_difference(_steps(events), _steps(theirs))
    sentence = compare.journals(Comparison(False, run.resolve().name, name, None, None, *parted, (), ()))
    keys = compare.differences(compare.recipe_of(run), compare.recipe_of(against))
    return Other(name, read(theirs), _rows(keys), f"{sentence[0].upper()}{sentence[1:]}.")


def _steps(events: Sequence[Event]) -> Mapping[int, Event]:
    return {event["step"]: event for event in events if event["event"] == "step"}


def _rows(found: Sequence[Difference]) -> list[tuple[str, ...]]:
    return [(each.name, _text(each.left), _text(each.right)) for each in found]


def _text(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ClusterError(f"{path} cannot be written ({error.strerror}); samestep report --to takes another") from None
