from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.model.schedule import SCHEDULES, learning_rate
from samestep.recipe.schema import Optimizer

FALLING = ("cosine", "linear")


def rates(steps: int, **settings: object) -> list[float]:
    optimizer = Optimizer.model_validate({"learning_rate": 0.5, **settings})
    return [learning_rate(step, steps, optimizer) for step in range(steps)]


length = st.integers(1, 60)
warm = st.integers(0, 80)
shares = st.floats(0, 1)
kind = st.sampled_from(sorted(SCHEDULES))


@given(length, warm, shares, kind)
def test_no_rate_is_below_zero_or_above_the_full_one(steps: int, warmup: int, final: float, schedule: str) -> None:
    assert all(0 <= rate <= 0.5 for rate in rates(steps, warmup=warmup, final=final, schedule=schedule))


@given(length, warm, shares, kind)
def test_it_rises_by_equal_parts_and_then_never_again(steps: int, warmup: int, final: float, schedule: str) -> None:
    found = rates(steps, warmup=warmup, final=final, schedule=schedule)
    up, down = found[:warmup], found[warmup:]
    assert up == pytest.approx([0.5 * (n + 1) / warmup for n in range(len(up))])
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(down))
    assert down[:1] in ([], [0.5])


@given(st.integers(2, 60), shares, st.sampled_from(FALLING), st.data())
def test_the_last_step_has_the_final_share(steps: int, final: float, schedule: str, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, steps - 2))
    assert rates(steps, warmup=warmup, final=final, schedule=schedule)[-1] == 0.5 * final


def test_the_shapes_in_numbers() -> None:
    assert rates(5, schedule="linear", final=0.0) == [0.5, 0.375, 0.25, 0.125, 0.0]
    assert rates(5, schedule="cosine", final=0.0) == pytest.approx([0.5, 0.4267767, 0.25, 0.0732233, 0.0])
    assert rates(4, schedule="constant", final=0.1, warmup=2) == [0.25, 0.5, 0.5, 0.5]
