"""What a journal proves: which rows each committed step has read. Pure functions of events and integers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Range = tuple[int, int]


@dataclass(frozen=True)
class Ledger:
    """steps: committed, each once. rows: read by them. lost, repeated: rows of the epochs up to the last step that no
    step has read, or more than one. problems: sentences, empty where the journal is what the recipe makes.
    """

    steps: int
    rows: int
    lost: int
    repeated: int
    problems: list[str]


def settled(events: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The steps that the model is made of, in order, and what is wrong with their order.

    A run that is resumed after step k computes the steps after k again: those before are no part of the model.
    """
    steps: list[Mapping[str, Any]] = []
    problems = []
    for event in events:
        if event["event"] == "resumed":
            steps = [step for step in steps if step["step"] <= event["step"]]
        elif event["event"] == "step":
            due = steps[-1]["step"] + 1 if steps else 1
            if event["step"] != due:
                problems.append(f"step {event['step']} stands where step {due} was due")
            steps.append(event)
    return steps, problems


def audit(events: Iterable[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], rows_per_epoch: int) -> Ledger:
    """Hold the journal against the recipe. wanted: `epoch`, `rows` and `tokens` of each step, from the first."""
    steps, problems = settled(events)
    for step in steps:
        problems += _differences(step, wanted[step["step"] - 1] if step["step"] <= len(wanted) else None)
    epochs: dict[int, list[Range]] = {}
    for step in steps:
        epochs.setdefault(step["epoch"], []).append((step["rows"][0], step["rows"][1]))
    last = max(epochs, default=0)
    lost = repeated = 0
    for epoch in range(last + 1):
        ranges = sorted(epochs.get(epoch, []))
        end = rows_per_epoch if epoch < last else max((stop for _, stop in ranges), default=0)
        missing, again = _coverage(ranges, end)
        lost, repeated = lost + missing, repeated + again
    return Ledger(len(steps), sum(step["rows"][1] - step["rows"][0] for step in steps), lost, repeated, problems)


def _differences(step: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> list[str]:
    if wanted is None:
        return [f"step {step['step']} is after the end that the recipe sets"]
    return [
        f"step {step['step']} has {key} {step[key]}, but the recipe makes it {value}"
        for key, value in wanted.items()
        if step[key] != value
    ]


def _coverage(ranges: Sequence[Range], end: int) -> tuple[int, int]:
    """Of the numbers below `end`, how many are in no range and how many stand in more than one (counted each time)."""
    missing = again = place = 0
    for start, stop in ranges:
        missing += max(0, start - place)
        again += max(0, min(place, stop) - start)
        place = max(place, stop)
    return missing + max(0, end - place), again
