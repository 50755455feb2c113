from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.corpus import Tokens
from samestep.data.feed import IGNORED, Feed, Fixed, MicroBatch, Reader, Source, StepPlan
from samestep.data.order import MISSING, Shape, permutation, rows_of_step
from samestep.data.pack import apart, fit, stream
from samestep.errors import DataError

EOS = 0
CONTEXT = 4


def corpus(lengths: list[int]) -> Tokens:
    """Documents of the given lengths, eos included; every other token is its own index."""
    ends = np.cumsum(lengths, dtype=np.int64)
    ids = np.arange(sum(lengths), dtype=np.uint16) + np.uint16(1000)
    ids[ends - 1] = EOS
    return Tokens(ids, ends)


def streamed(tokens: Tokens, packing: bool) -> Source:
    return Source(tokens, stream(tokens.ends, CONTEXT, packing))


def feed_of(lengths: list[int], shape: Shape, packing: bool = True, seed: int = 1) -> Feed:
    source = streamed(corpus(lengths), packing)
    return Feed([source], [1.0], context=CONTEXT, seed=seed, shape=shape, eos=EOS)


def micro_batches(feed: Feed, step: StepPlan) -> list[MicroBatch]:
    lanes, accumulate, _ = step.rows.shape
    return [feed.micro_batch(step, lane, micro) for lane in range(lanes) for micro in range(accumulate)]


def test_a_micro_batch_holds_inputs_next_tokens_masks_and_padding() -> None:
    reader = Reader([streamed(corpus([3, 5]), True)], context=CONTEXT, eos=EOS)
    batch = reader.read(np.array([1, MISSING, 0]))
    assert batch.tokens.tolist() == [[1004, 1005, 1006, EOS], [EOS] * 4, [1000, 1001, EOS, 1003]]
    assert batch.targets.tolist() == [[1005, 1006, EOS, IGNORED], [IGNORED] * 4, [1001, EOS, IGNORED, 1004]]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.positions is None and batch.pieces is None


def test_an_unpacked_row_ends_with_its_document() -> None:
    batch = Reader([streamed(corpus([3, 6]), False)], context=CONTEXT, eos=EOS).read(np.arange(3))
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
    source = streamed(tokens, True)
    fixed = Fixed([source], context=CONTEXT, micro_batch=2, eos=EOS)
    read_back = torch.cat([fixed.micro_batch(batch).tokens for batch in range(len(fixed))])
    assert (len(source.rows), len(fixed), read_back.shape) == (5, 3, (6, CONTEXT))
    assert read_back[:5].flatten().tolist() == tokens.ids[:-1].tolist()
    assert (read_back[5] == EOS).all()
    assert (fixed.micro_batch(2).targets[1] == IGNORED).all()


def test_nothing_held_out_is_no_micro_batch() -> None:
    assert len(Fixed([streamed(corpus([]), True)], context=CONTEXT, micro_batch=2, eos=EOS)) == 0


# Samples kept apart.


def answers(lengths: list[int], untrained: int, first: int = 1000) -> Tokens:
    """Sequences of the given lengths whose first `untrained` tokens are prompts; every token is its own number."""
    sizes = np.array(lengths, np.int64)
    trained = np.concatenate([np.arange(size) >= untrained for size in lengths])
    return Tokens(np.arange(first, first + sizes.sum(), dtype=np.uint16), np.cumsum(sizes), trained)


def kept_apart(tokens: Tokens, context: int, together: int = 1, score: bool = False) -> Source:
    found = fit(tokens.ends, tokens.trained, context, together=together, score=score)
    return Source(tokens, apart(tokens.ends, found, context, together=together))


def test_samples_in_one_row_have_their_own_positions_targets_and_pieces() -> None:
    reader = Reader([kept_apart(answers([4, 5], 2), 8)], context=8, eos=EOS)
    batch = reader.read(np.array([MISSING, 0]))
    assert batch.positions is not None and batch.pieces is not None
    assert batch.tokens.tolist() == [[EOS] * 8, [1000, 1001, 1002, 1004, 1005, 1006, 1007, EOS]]
    assert batch.targets.tolist() == [
        [IGNORED] * 8,
        [IGNORED, 1002, 1003, IGNORED, 1006, 1007, 1008, IGNORED],
    ]
    assert batch.positions.tolist() == [[0] * 8, [0, 1, 2, 0, 1, 2, 3, 0]]
    assert batch.pieces.tolist() == [[1, 0, 3, 0], [1, 3, 7, 1]]
    assert (batch.reference, reader.targets.tolist(), reader.pieces.tolist()) == (None, [5], [2])


def test_a_scored_pair_reads_its_last_tokens_which_have_no_target() -> None:
    batch = Reader([kept_apart(answers([3, 2], 1), 5, 2, True)], context=5, eos=EOS).read(np.array([0]))
    assert batch.tokens.tolist() == [[1000, 1001, 1002, 1003, 1004]]
    assert batch.targets.tolist() == [[1001, 1002, IGNORED, 1004, IGNORED]]
    assert batch.pieces is not None and batch.pieces.tolist() == [[0, 0, 3, 0], [0, 3, 5, 1]]


def test_a_micro_batch_of_padding_has_no_piece() -> None:
    batch = Reader([kept_apart(answers([3], 1), 4)], context=4, eos=EOS).read(np.array([MISSING]))
    assert batch.pieces is not None and batch.pieces.shape == (0, 4)


def test_sequences_are_counted_over_all_sources_and_their_references_go_along() -> None:
    first, second = answers([4, 4, 20], 1), answers([4, 4, 2], 1, first=2000)  # the third of the first one is too long
    reader = Reader([kept_apart(first, 4), kept_apart(second, 4)], context=4, eos=EOS)
    reader.reference = torch.arange(6) / 8
    assert reader.sequences == 6
    batch = reader.read(np.array([3, 0, MISSING, 2]))
    assert batch.pieces is not None and batch.reference is not None
    assert batch.tokens.tolist() == [
        [2004, 2005, 2006, EOS],
        [1000, 1001, 1002, EOS],
        [EOS] * 4,
        [*range(2000, 2003), 2008],
    ]
    assert batch.pieces.tolist() == [[0, 0, 3, 4], [1, 0, 3, 0], [3, 0, 3, 3], [3, 3, 4, 5]]
    assert batch.reference.tolist() == [4 / 8, 0.0, 3 / 8, 5 / 8]


def test_a_step_counts_its_targets_and_pieces() -> None:
    source = kept_apart(answers([5, 4, 4, 3, 2, 5, 2, 4], 2), 8)
    feed = Feed([source], [1.0], context=8, seed=3, shape=(2, 1, 1), eos=EOS)
    for n in range(feed.steps_per_epoch):
        step = feed.step(n)
        read = micro_batches(feed, step)
        assert step.targets == sum(int((batch.targets != IGNORED).sum()) for batch in read)
        assert step.pieces == sum(len(batch.pieces) for batch in read if batch.pieces is not None)


@pytest.mark.parametrize(("weights", "times"), [([1.0, 1.0], (1, 1)), ([3.0, 1.0], (3, 1)), ([0.5, 2.0], (0.5, 2))])
def test_weights_say_how_often_an_epoch_reads_each_source(weights: list[float], times: tuple[float, float]) -> None:
    sources = [streamed(corpus([4 * 4 + 1]), True), streamed(corpus([6 * 4 + 1]), True)]  # 4 and 6 rows
    feed = Feed(sources, weights, context=CONTEXT, seed=1, shape=(2, 1, 2), eos=EOS)
    seen: Counter[int] = Counter()
    for n in range(2 * feed.steps_per_epoch):
        step = feed.step(n)
        seen.update(step.rows[step.rows != MISSING].tolist())
    assert seen == {row: 2 * times[row >= 4] for row in range(10)}


def test_a_row_knows_its_source_and_the_sequences_in_it() -> None:
    lengths = [3, 5, 4, 6]  # packed into rows of 4 positions: 0-3, 4-7, 8-11, 12-15, 16
    packed = Reader([streamed(corpus([9]), True), streamed(corpus(lengths), True)], context=CONTEXT, eos=EOS)
    assert [packed.origin(row) for row in range(2, 7)] == [(1, [0, 1]), (1, [1]), (1, [2]), (1, [3]), (1, [3])]
    tokens = corpus(lengths)
    rows = apart(tokens.ends, fit(tokens.ends, None, 8, too_long="skip"), 8)
    reader = Reader([Source(tokens, rows)], context=8, eos=EOS)
    assert sorted(sequence for row in range(len(rows)) for sequence in reader.origin(row)[1]) == [0, 1, 2, 3]
    assert rows.sequences is not None and reader.origin(0)[1] == rows.sequences[: rows.ends[0]].tolist()
