import numpy as np
import pytest

from samestep.data.summary import refusals, summary
from samestep.data.survey import Found, Seen
from samestep.recipe.schema import Recipe


def seen(sizes: list[int], held_out: tuple[int, ...] = (), kept: list[int] | None = None, each: int = 1) -> Seen:
    count = len(sizes) // each
    tokens = np.array(sizes, np.int64)
    mask = np.isin(np.arange(count), list(held_out))
    places = np.stack([np.zeros(count, np.int64), np.arange(1, count + 1)], 1)
    left = tokens - 1 if kept is None else np.array(kept, np.int64)
    return Seen(("f",), np.arange(count, dtype=np.uint64), mask, places, tokens, tokens - 1, left, 0, Found(), {})


def recipe(objective: str = "sft", **data: object) -> Recipe:
    kind = {"held_out": 0.0, "context": 8} | data
    return Recipe.model_validate({"steps": 1, "objective": {"kind": objective}, "data": kind})


NOBODY = np.zeros(0, np.uint64)


def test_counts_are_of_samples_sequences_and_tokens() -> None:
    one = summary("s", "preference", seen([3, 4, 5, 6], (1,), each=2), recipe("dpo", context=16), NOBODY)
    assert (one.samples, one.held_out, one.sequences, one.tokens, one.trained) == (2, 1, 4, 18, 14)
    assert (one.shortest, one.median, one.longest) == (7, 9, 11)
    assert one.histogram == {8: 1, 16: 1}


def test_padding_is_what_the_packed_rows_leave() -> None:
    packed = summary("s", "messages", seen([5, 5, 9, 5]), recipe(), NOBODY)  # 4, 4, 8 and 4 positions
    assert (packed.rows, packed.padding) == (3, pytest.approx(1 - 20 / 24))
    alone = summary("s", "messages", seen([5, 5, 9, 5]), recipe(packing=False), NOBODY)
    assert (alone.rows, alone.padding) == (4, pytest.approx(1 - 20 / 32))


def test_held_out_samples_take_no_row() -> None:
    assert summary("s", "messages", seen([9, 9, 9], (0, 2)), recipe(), NOBODY).rows == 1


def test_a_stream_has_no_sample_that_is_too_long() -> None:
    one = summary("s", "text", seen([100, 3]), recipe("causal"), NOBODY)
    assert (one.too_long, one.rows) == (0, 13)


@pytest.mark.parametrize(("policy", "rows", "untrained"), [("skip", 1, 0), ("truncate", 2, 1)])
def test_long_samples_are_counted_and_treated_as_the_recipe_says(policy: str, rows: int, untrained: int) -> None:
    """Of the third, truncation would leave the prompt alone."""
    one = summary("s", "messages", seen([9, 20, 30], kept=[8, 3, 0]), recipe(too_long=policy), NOBODY)
    assert (one.too_long, one.rows, one.untrained) == (2, rows, untrained)


def test_nothing_kept_is_no_row_and_no_padding() -> None:
    one = summary("s", "messages", seen([20]), recipe(too_long="skip"), NOBODY)
    assert (one.rows, one.padding) == (0, 0.0)


REFUSED = {
    "too long": (seen([20, 5]), recipe(), "s has 1 samples longer than data.context 8 and data.too_long is fail"),
    "nothing to train on": (seen([20]), recipe(too_long="skip"), "no training sample of s can be trained on"),
    "nothing held out": (seen([5, 5]), recipe(held_out=0.1), "data.held_out 0.1 takes 0 of 2 samples of s"),
    "all held out": (seen([5, 5], (0, 1)), recipe(held_out=0.1), "takes 2 of 2 samples of s, but training"),
    "objective": (seen([5, 5]), recipe("causal"), "s holds messages samples, but objective.kind causal learns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_run_would_refuse_is_said(case: str) -> None:
    found, wanted, said = REFUSED[case]
    (sentence,) = refusals(summary("s", "messages", found, wanted, NOBODY), wanted)
    assert said in sentence


def test_what_the_policies_let_pass_is_not_refused() -> None:
    wanted = recipe(too_long="skip", held_out=0.5)
    assert list(refusals(summary("s", "messages", seen([20, 5, 5], (1,)), wanted, NOBODY), wanted)) == []
