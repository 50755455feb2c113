from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.feed import IGNORED, Feed, Fixed, MicroBatch, StepPlan, read
from samestep.data.order import MISSING, Shape, permutation, rows_of_step
from samestep.data.pack import plan
from samestep.data.tokenize import Tokens
from samestep.errors import DataError

EOS = 0
CONTEXT = 4


def corpus(lengths: list[int]) -> Tokens:
    """Documents of the given lengths, eos included; every other token is its own index."""
    ends = np.cumsum(lengths, dtype=np.int64)
    ids = np.arange(sum(lengths), dtype=np.uint16) + np.uint16(1000)
    ids[ends - 1] = EOS
    return Tokens(ids, ends)


def feed_of(lengths: list[int], shape: Shape, packing: bool = True, seed: int = 1) -> Feed:
    tokens = corpus(lengths)
    return Feed(tokens, plan(tokens.ends, CONTEXT, packing), context=CONTEXT, seed=seed, shape=shape, eos=EOS)


def micro_batches(feed: Feed, step: StepPlan) -> list[MicroBatch]:
    lanes, accumulate, _ = step.rows.shape
    return [feed.micro_batch(step, lane, micro) for lane in range(lanes) for micro in range(accumulate)]


def test_a_micro_batch_holds_inputs_next_tokens_masks_and_padding() -> None:
    tokens = corpus([3, 5])
    batch = read(tokens, plan(tokens.ends, CONTEXT, True), np.array([1, MISSING, 0]), CONTEXT, EOS)
    assert batch.tokens.tolist() == [[1004, 1005, 1006, EOS], [EOS] * 4, [1000, 1001, EOS, 1003]]
    assert batch.targets.tolist() == [[1005, 1006, EOS, IGNORED], [IGNORED] * 4, [1001, EOS, IGNORED, 1004]]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64


def test_an_unpacked_row_ends_with_its_document() -> None:
    tokens = corpus([3, 6])
    batch = read(tokens, plan(tokens.ends, CONTEXT, False), np.arange(3), CONTEXT, EOS)
    assert batch.tokens.tolist() == [[1000, 1001, EOS, EOS], [1003, 1004, 1005, 1006], [1007, EOS, EOS, EOS]]
    assert batch.targets.tolist() == [
        [1001, EOS, IGNORED, IGNORED],
        [1004, 1005, 1006, 1007],
        [EOS, IGNORED, IGNORED, IGNORED],
    ]


@given(st.lists(st.integers(2, 20), min_size=12, max_size=20), st.booleans(), st.integers(0, 9))
def test_an_epoch_trains_every_target_once_and_the_plan_counts_them(
    lengths: list[int], packing: bool, seed: int
) -> None:
    feed = feed_of(lengths, (2, 2, 1), packing, seed)
    seen: Counter[int] = Counter()
    for n in range(feed.steps_per_epoch):
        step = feed.step(n)
        targets = torch.cat([batch.targets for batch in micro_batches(feed, step)])
        kept = targets[targets != IGNORED].tolist()
        assert step.targets == len(kept)
        seen.update(kept)
    tokens = corpus(lengths)
    firsts = [0, *tokens.ends[:-1].tolist()]
    assert seen == Counter(np.delete(tokens.ids, firsts).tolist())


def test_steps_may_be_asked_for_in_any_order() -> None:
    feed, shape = feed_of([50, 40], (3, 1, 2)), (3, 1, 2)
    for n in (0, 9, 3, 4, 0, 8, 1):
        np.testing.assert_array_equal(feed.step(n).rows, rows_of_step(1, n, 23, shape))


def test_a_plan_says_which_part_of_which_epoch_it_reads() -> None:
    feed = feed_of([50, 40], (3, 1, 2))
    for n in (0, 3, 4, 7):
        step = feed.step(n)
        order = permutation(1, step.epoch, 23)
        assert step.epoch == n // 4
        assert sorted(order[list(step.places)].tolist()) == sorted(step.rows[step.rows != MISSING].tolist())


def test_every_micro_batch_has_one_shape_also_in_a_short_step() -> None:
    feed = feed_of([50, 40], (3, 2, 2))
    step = feed.step(feed.steps_per_epoch - 1)
    assert (step.rows == MISSING).sum() == 1
    assert {(b.tokens.shape, b.targets.shape) for b in micro_batches(feed, step)} == {((2, CONTEXT), (2, CONTEXT))}


def test_a_corpus_shorter_than_a_step_is_refused() -> None:
    with pytest.raises(DataError, match="the corpus has 2 rows of 4 tokens, one step takes 6"):
        feed_of([9], (3, 1, 2))


def test_evaluation_reads_the_rows_in_their_own_order() -> None:
    tokens = corpus([13, 8])
    rows = plan(tokens.ends, CONTEXT, True)
    fixed = Fixed(tokens, rows, context=CONTEXT, micro_batch=2, eos=EOS)
    read_back = torch.cat([fixed.micro_batch(batch).tokens for batch in range(len(fixed))])
    assert (len(rows), len(fixed), read_back.shape) == (5, 3, (6, CONTEXT))
    assert read_back[:5].flatten().tolist() == tokens.ids[:-1].tolist()
    assert (read_back[5] == EOS).all()
    assert (fixed.micro_batch(2).targets[1] == IGNORED).all()


def test_nothing_held_out_is_no_micro_batch() -> None:
    tokens = corpus([])
    assert len(Fixed(tokens, plan(tokens.ends, CONTEXT, True), context=CONTEXT, micro_batch=2, eos=EOS)) == 0
