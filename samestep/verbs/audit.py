"""samestep audit: does the journal of a run prove that every row was read as the recipe says?"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from samestep.data.feed import Feed
from samestep.errors import DataError
from samestep.recover import alternate, ledger
from samestep.recover.ledger import Ledger
from samestep.replica.setup import feed_of
from samestep.verbs.prepare import Say, prepare
from samestep.verbs.resume import refuse_other_recipe


def audit(run: Path, say: Say) -> Ledger:
    """Hold the journal of `run` against its recipe, whose data must still be there."""
    events = alternate.events_of(run)
    opened = next((event for event in events if event["event"] == "opened"), None)
    if opened is None or not {"base", "recipe"} <= opened.keys():
        raise DataError(f"{run}/journal.jsonl does not say how the run began, so nothing can be proved of it")
    refuse_other_recipe(run / "recipe.yaml", opened)
    prepared = prepare(run / "recipe.yaml", [], say, base=Path(opened["base"]))
    for key, now in (("rows", prepared.rows), ("rows_digest", prepared.rows_digest), ("steps", prepared.steps)):
        if opened[key] != now:
            raise DataError(
                f"{run} began with {key} {opened[key]}, now it is {now}: its data have changed; restore them"
            )
    feed = feed_of(prepared.job("train", run))
    return ledger.audit(events, [_wanted(feed, n) for n in range(prepared.steps)], prepared.rows)


def _wanted(feed: Feed, n: int) -> dict[str, Any]:
    plan = feed.step(n)
    return {"epoch": plan.epoch, "rows": [plan.places.start, plan.places.stop], "tokens": plan.targets}


def clean(found: Ledger) -> bool:
    return not (found.problems or found.lost or found.repeated)


def as_dict(found: Ledger) -> dict[str, Any]:
    return asdict(found) | {"clean": clean(found)}


def lines(found: Ledger) -> list[str]:
    first = f"{found.steps:,} steps, {found.rows:,} rows: {found.lost:,} lost, {found.repeated:,} repeated"
    return [first, *found.problems]
