"""The ledger says what each step has read, and finds every way in which that is not what the recipe makes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.recover.ledger import audit, settled

ROWS, SIZE = 10, 4  # an epoch is 4 + 4 + 2 rows


def wanted(steps: int) -> list[dict[str, Any]]:
    plan = []
    for n in range(steps):
        epoch, within = divmod(n, 3)
        plan.append({"epoch": epoch, "rows": [4 * within, min(ROWS, 4 * within + 4)], "tokens": 100 + n})
    return plan


def journal(*steps: int) -> list[dict[str, Any]]:
    plan = wanted(max(steps, default=0))
    return [{"event": "step", "step": n} | plan[n - 1] for n in steps]


def resumed(step: int) -> list[dict[str, Any]]:
    return [{"event": "resumed", "step": step}]


def test_a_whole_run_has_lost_and_repeated_nothing() -> None:
    found = audit([{"event": "opened"}, *journal(*range(1, 8))], wanted(8), ROWS)
    assert (found.steps, found.rows, found.lost, found.repeated, found.problems) == (7, 24, 0, 0, [])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=5))
def test_steps_computed_again_after_a_resumption_count_once(lives: list[tuple[int, int]]) -> None:
    events, done = [], 0
    for back, forward in lives:
        start = max(0, done - back)
        events += resumed(start) + journal(*range(start + 1, start + forward + 1))
        done = start + forward
    found = audit(events, wanted(done), ROWS)
    assert (found.steps, found.lost, found.repeated, found.problems) == (done, 0, 0, [])


def test_a_step_that_is_missing_is_named_and_its_rows_are_lost() -> None:
    found = audit(journal(1, 3, 4), wanted(4), ROWS)
    assert found.lost == 4 and found.repeated == 0
    assert found.problems == ["step 3 stands where step 2 was due"]


def test_a_step_that_is_there_twice_is_named_and_its_rows_are_repeated() -> None:
    found = audit(journal(1, 2, 2, 3), wanted(4), ROWS)
    assert found.repeated == 4 and found.lost == 0
    assert found.problems == ["step 2 stands where step 3 was due"]


@pytest.mark.parametrize(("key", "value"), [("rows", [0, 3]), ("tokens", 7), ("epoch", 1)])
def test_a_step_that_read_something_else_is_named_with_both(key: str, value: Any) -> None:
    events = journal(1, 2)
    events[0][key] = value
    first = audit(events, wanted(2), ROWS).problems[0]
    assert first == f"step 1 has {key} {value}, but the recipe makes it {wanted(1)[0][key]}"


def test_a_step_after_the_end_is_named() -> None:
    assert audit(journal(1, 2), wanted(1), ROWS).problems == ["step 2 is after the end that the recipe sets"]


def test_what_a_resumption_left_behind_is_no_part_of_the_model() -> None:
    steps, problems = settled([*journal(1, 2, 3), *resumed(1), *journal(2)])
    assert [step["step"] for step in steps] == [1, 2] and not problems
