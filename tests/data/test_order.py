import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.order import (
    MISSING,
    Shape,
    _stream,
    batches,
    check_rows,
    drawn,
    mix,
    permutation,
    rows_of_batch,
    rows_of_epoch,
    rows_of_step,
    steps_for,
    steps_per_epoch,
)
from samestep.errors import DataError

SEEDS = st.integers(0, 2**63 - 1)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))


def test_the_stream_is_that_of_the_published_splitmix64() -> None:
    assert _stream(1234567, 5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_the_order_is_the_same_for_ever() -> None:
    assert permutation(1, 0, 16).tolist() == [15, 9, 8, 7, 11, 4, 13, 10, 2, 12, 0, 3, 6, 5, 14, 1]
    long = permutation(7, 3, 10_007).astype("<i8").tobytes()
    assert hashlib.sha256(long).hexdigest() == "2ae11e8cd4470036d477f34f15d8a321ae27d4600efec904af531ccc0768d5ee"
    assert rows_of_step(1, 2, 21, (3, 2, 2)).tolist() == [
        [[10, 3], [12, 20]],
        [[5, 11], [6, 15]],
        [[13, 9], [7, 4]],
    ]


def test_the_mix_is_the_same_for_ever() -> None:
    assert [mix(0), mix(1, 2, 3), mix(0, 0, 0, 0)] == [10451216379200822465, 2711551329624082386, 1941111019582354804]


@given(SEEDS, st.integers(0, 1000), st.integers(0, 300))
def test_an_order_holds_every_row_once(seed: int, epoch: int, n: int) -> None:
    order = permutation(seed, epoch, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    pairs = itertools.product((0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1), range(4))
    assert len({permutation(seed, epoch, 50).tobytes() for seed, epoch in pairs}) == 24


def test_orders_are_spread_evenly() -> None:
    n, trials = 10, 5000
    counts = np.zeros((n, n))
    for seed in range(trials):
        counts[np.arange(n), permutation(seed, 0, n)] += 1
    expected = trials / n
    assert ((counts - expected) ** 2 / expected).sum() < 81 + 4 * math.sqrt(2 * 81)  # chi-squared, 81 degrees


@given(SEEDS, st.integers(0, 3), st.integers(1, 120), SHAPES)
def test_every_row_is_read_exactly_once_an_epoch(seed: int, epoch: int, rows: int, shape: Shape) -> None:
    steps = steps_per_epoch(rows, math.prod(shape))
    read = [rows_of_step(seed, epoch * steps + step, rows, shape) for step in range(steps)]
    assert {(step.shape, step.dtype) for step in read} == {(shape, np.dtype(np.int64))}
    found = np.concatenate(read).ravel()
    assert sorted(found[found != MISSING].tolist()) == list(range(rows))
    assert all((step != MISSING).all() for step in read[:-1])


@given(SEEDS, st.integers(1, 120), SHAPES)
def test_a_short_step_is_shared_by_all_lanes_and_empty_at_their_ends(seed: int, rows: int, shape: Shape) -> None:
    last = rows_of_step(seed, steps_per_epoch(rows, math.prod(shape)) - 1, rows, shape) != MISSING
    lanes = last.reshape(shape[0], -1)
    there = lanes.sum(1)
    assert there.max() - there.min() <= 1
    assert (np.sort(lanes, axis=1)[:, ::-1] == lanes).all()


@given(st.integers(1, 500), st.integers(1, 50), st.integers(1, 10))
def test_epochs_become_steps(rows: int, rows_per_step: int, epochs: int) -> None:
    steps = steps_for(None, None, epochs, rows=rows, rows_per_step=rows_per_step, context=8)
    assert steps == epochs * math.ceil(rows / rows_per_step)


@given(st.integers(1, 5000), st.integers(1, 50), st.integers(1, 20), st.integers(2, 9))
def test_tokens_become_the_fewest_steps_that_read_them(
    tokens: int, rows: int, rows_per_step: int, context: int
) -> None:
    steps = steps_for(None, tokens, None, rows=rows, rows_per_step=rows_per_step, context=context)
    read = [
        context * int((rows_of_step(1, step, rows, (1, 1, rows_per_step)) != MISSING).sum()) for step in range(steps)
    ]
    assert sum(read[:-1]) < tokens <= sum(read)


def test_steps_are_steps_and_no_length_is_a_mistake() -> None:
    assert steps_for(7, None, None, rows=10, rows_per_step=4, context=8) == 7
    with pytest.raises(ValueError, match="one of steps, tokens and epochs"):
        steps_for(None, None, None, rows=10, rows_per_step=4, context=8)


def test_a_corpus_shorter_than_a_step_is_refused() -> None:
    check_rows(64, 64, 256)
    with pytest.raises(DataError) as caught:
        check_rows(37, 64, 256)
    assert str(caught.value) == (
        "the corpus has 37 rows of 256 tokens, one step takes 64; use a larger corpus, a smaller batch or fewer lanes"
    )


@given(st.integers(0, 100), st.integers(1, 9))
def test_batches_hold_the_rows_in_their_own_order(rows: int, micro_batch: int) -> None:
    read = [rows_of_batch(batch, rows, micro_batch) for batch in range(batches(rows, micro_batch))]
    assert all(which.shape == (micro_batch,) for which in read)
    places = [row for which in read for row in which.tolist()]
    assert places == [*range(rows), *[MISSING] * (-rows % micro_batch)]


def test_mixes_of_neighbouring_tuples_do_not_collide_even_in_their_low_half() -> None:
    tuples = itertools.product((0, 1, 2**32, 2**32 + 1, 2**63 - 1), range(1000), range(10), range(2))  # 100,000
    mixed = [mix(*integers) for integers in tuples]
    assert len(set(mixed)) == 100_000
    assert 100_000 - len({value & 0xFFFFFFFF for value in mixed}) <= 6  # 1.2 are to be expected
    assert 100_000 - len({value >> 32 for value in mixed}) <= 6


def test_the_mix_sees_the_order_and_the_number_of_its_integers() -> None:
    tuples = [t for n in range(5) for t in itertools.product((0, 1, 2), repeat=n)]
    assert len({mix(*t) & 0xFFFFFFFF for t in tuples}) == len(tuples)


@pytest.mark.parametrize("place", range(4))
def test_one_changed_bit_changes_half_of_all_bits(place: int) -> None:
    flips = np.zeros(64)
    trials = 0
    for base in range(20):
        integers = [base, base * 7, base % 8, 1]
        before = mix(*integers)
        for bit in range(64):
            changed = [x ^ (1 << bit) if i == place else x for i, x in enumerate(integers)]
            flips += [(before ^ mix(*changed)) >> out & 1 for out in range(64)]
            trials += 1
    assert (np.abs(flips / trials - 0.5) < 0.07).all()  # five standard deviations of 1,280 fair coins


@pytest.mark.parametrize("integer", [-1, 2**64])
def test_the_mix_refuses_what_64_bits_do_not_hold(integer: int) -> None:
    with pytest.raises(ValueError, match="not"):
        mix(1, integer)


# Several sources.


@given(SEEDS, st.integers(0, 5), st.integers(1, 60))
def test_one_source_of_weight_one_is_read_in_the_plain_order(seed: int, epoch: int, rows: int) -> None:
    np.testing.assert_array_equal(drawn(seed, epoch, [rows], [1.0]), permutation(seed, epoch, rows))


@given(SEEDS, st.integers(0, 5), st.integers(1, 60))
def test_a_weight_of_two_reads_every_row_twice(seed: int, epoch: int, rows: int) -> None:
    assert sorted(drawn(seed, epoch, [rows], [2.0]).tolist()) == sorted([*range(rows), *range(rows)])


@given(SEEDS, st.integers(0, 3), st.integers(1, 30))
def test_a_weight_of_a_half_reads_all_rows_in_two_epochs(seed: int, pass_: int, half: int) -> None:
    epochs = [drawn(seed, 2 * pass_ + i, [2 * half], [0.5]) for i in range(2)]
    assert [len(epoch) for epoch in epochs] == [half, half]
    assert sorted(np.concatenate(epochs).tolist()) == list(range(2 * half))


SOURCES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 11)), min_size=1, max_size=4)  # rows, quarters of them


@given(SEEDS, SOURCES, st.integers(1, 2))
def test_each_row_is_read_as_often_as_weight_times_epochs(
    seed: int, sources: list[tuple[int, int]], rounds: int
) -> None:
    rows, weights = [4 * n for n, _ in sources], [quarters / 4 for _, quarters in sources]
    epochs = [drawn(seed, epoch, rows, weights) for epoch in range(4 * rounds)]
    assert {len(epoch) for epoch in epochs} == {sum(map(rows_of_epoch, weights, rows))}
    found = np.bincount(np.concatenate(epochs), minlength=sum(rows))
    assert found.tolist() == [
        quarters * rounds for (_, quarters), n in zip(sources, rows, strict=True) for _ in range(n)
    ]


@given(SEEDS, st.integers(1, 50), st.floats(0.01, 4), st.integers(1, 6))
def test_of_odd_weights_no_row_gets_ahead_by_more_than_one(seed: int, rows: int, weight: float, epochs: int) -> None:
    read = np.concatenate([drawn(seed, epoch, [rows], [weight]) for epoch in range(epochs)])
    counts = np.bincount(read, minlength=rows)
    assert len(read) == epochs * rows_of_epoch(weight, rows)
    assert counts.max() - counts.min() <= 1


def test_a_source_is_read_at_least_once_an_epoch() -> None:
    assert [rows_of_epoch(weight, 10) for weight in (0.01, 0.25, 1, 2.5)] == [1, 2, 10, 25]


def test_the_draw_is_the_same_for_ever_and_mixes_the_sources() -> None:
    assert drawn(1, 1, [6, 4], [0.5, 2.0]).tolist() == [9, 8, 6, 8, 9, 6, 7, 2, 0, 3, 7]
    halves = {tuple(sorted(drawn(seed, 0, [6], [0.5]).tolist())) for seed in range(20)}
    assert len(halves) > 5
