from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.pack import Fit, Integers, Rows, apart, best_fit, digest, fit, masked, stream

CORPORA = st.lists(st.integers(1, 40), min_size=1, max_size=12)  # tokens a document, eos included
CONTEXTS = st.integers(2, 30)


def ends_of(lengths: list[int]) -> Integers:
    return np.cumsum(lengths, dtype=np.int64)


def target_indices(rows: Rows, ends: Integers) -> list[list[int]]:
    """The index in the corpus of each target that is not masked, row by row."""
    found = []
    for start, length in zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True):
        hidden = set(masked(ends, start, length).tolist())
        found.append([start + 1 + i for i in range(length) if i not in hidden])
    return found


@given(CORPORA, CONTEXTS, st.booleans())
def test_every_token_that_follows_another_of_its_document_is_a_target_once(
    lengths: list[int], context: int, packing: bool
) -> None:
    ends = ends_of(lengths)
    rows = stream(ends, context, packing)
    firsts = {0, *ends.tolist()}
    found = [i for indices in target_indices(rows, ends) for i in indices]
    assert found == [i for i in range(sum(lengths)) if i not in firsts]


@given(CORPORA, CONTEXTS, st.booleans())
def test_targets_are_counted_without_reading_a_token(lengths: list[int], context: int, packing: bool) -> None:
    ends = ends_of(lengths)
    rows = stream(ends, context, packing)
    assert rows.targets.tolist() == [len(indices) for indices in target_indices(rows, ends)]


@given(CORPORA, CONTEXTS)
def test_packed_rows_are_one_stream_cut_at_multiples_of_the_context(lengths: list[int], context: int) -> None:
    rows = stream(ends_of(lengths), context, packing=True)
    assert rows.starts.tolist() == list(range(0, sum(lengths) - 1, context))
    assert rows.lengths.sum() == sum(lengths) - 1
    assert (rows.lengths[:-1] == context).all()


@given(CORPORA, CONTEXTS)
def test_unpacked_rows_never_cross_documents_and_mask_nothing(lengths: list[int], context: int) -> None:
    ends = ends_of(lengths)
    rows = stream(ends, context, packing=False)
    assert (rows.targets == rows.lengths).all()
    assert ((rows.lengths >= 1) & (rows.lengths <= context)).all()
    first, last = rows.starts, rows.starts + rows.lengths
    assert (np.searchsorted(ends, first, "right") == np.searchsorted(ends, last, "right")).all()


def test_a_document_starts_an_unpacked_row_of_its_own() -> None:
    rows = stream(ends_of([6, 1, 3]), 4, packing=False)
    assert rows.starts.tolist() == [0, 4, 7]
    assert rows.lengths.tolist() == [4, 1, 2]


def test_the_first_token_of_a_later_document_is_masked() -> None:
    ends = ends_of([3, 4, 2])
    rows = stream(ends, 4, packing=True)
    assert rows.lengths.tolist() == [4, 4]
    assert [masked(ends, start, 4).tolist() for start in (0, 4)] == [[2], [2]]
    assert rows.targets.tolist() == [3, 3]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("lengths", [[], [1], [1, 1]])
def test_corpora_without_a_target_have_none(lengths: list[int], packing: bool) -> None:
    assert stream(ends_of(lengths), 4, packing).targets.sum() == 0


@pytest.mark.parametrize("packing", [True, False])
def test_columns_are_int64_in_memory_even_from_a_mapped_file(tmp_path: Path, packing: bool) -> None:
    np.save(tmp_path / "ends.npy", ends_of([5, 9]))
    rows = stream(np.load(tmp_path / "ends.npy", mmap_mode="r", allow_pickle=False), 4, packing)
    for column in (rows.starts, rows.lengths, rows.targets):
        assert not isinstance(column, np.memmap)
        assert (column.dtype.name, len(column)) == ("int64", len(rows))


def test_the_digest_is_the_same_for_ever() -> None:
    rows = stream(ends_of([3, 4, 2]), 4, packing=True)
    assert digest(rows) == "d9ed5ea2ab47e9af5ccbd8cf52b00c864b3d3f7e05288701729022d47f8195b3"


@given(CORPORA, CONTEXTS, st.booleans(), st.integers(0, 2), st.integers(0))
def test_the_digest_sees_every_number(lengths: list[int], context: int, packing: bool, column: int, where: int) -> None:
    rows = stream(ends_of(lengths), context, packing)
    names = ("starts", "lengths", "targets")
    columns = {name: getattr(rows, name).copy() for name in names}
    assert digest(replace(rows, **columns)) == digest(rows)
    if len(rows):
        columns[names[column]][where % len(rows)] += 1
        assert digest(replace(rows, **columns)) != digest(rows)


# Samples kept apart.


def naive(lengths: list[int], context: int) -> list[int]:
    """Best-fit decreasing, one sample at a time: how full its rows are."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [used for used in rows if used + length <= context]
        if fits:
            rows.remove(max(fits))
        rows.append((max(fits) if fits else 0) + length)
    return sorted(rows)


@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60))))
def test_best_fit_fills_rows_as_the_naive_one_does(case: tuple[int, list[int]]) -> None:
    context, lengths = case
    row_of = best_fit(np.array(lengths, np.int64), context)
    used = np.bincount(row_of, weights=lengths).astype(int)
    assert sorted(used.tolist()) == naive(lengths, context)
    assert (used <= context).all()
    assert sorted(set(row_of.tolist())) == list(range(len(used)))


def test_best_fit_is_the_same_for_ever() -> None:
    lengths = np.array([3, 7, 2, 2, 5, 3, 3, 8, 1, 1])
    assert best_fit(lengths, 8).tolist() == [2, 1, 3, 4, 2, 3, 3, 0, 1, 4]


Case = tuple[list[list[tuple[int, bool]]], int, int, bool, str]


@st.composite
def samples(draw: st.DrawFn) -> Case:
    """Samples of `together` sequences, each its tokens and whether it is trained; context, score, too_long."""
    together = draw(st.sampled_from([1, 2]))
    sequence = st.tuples(st.integers(0, 12), st.sampled_from([True, True, True, False]))
    found = draw(st.lists(st.lists(sequence, min_size=together, max_size=together), max_size=12))
    return found, together, draw(st.integers(2, 16)), draw(st.booleans()), draw(st.sampled_from(["skip", "truncate"]))


def packed(case: Case, packing: bool = True) -> tuple[Integers, Fit, Rows]:
    found, together, context, score, too_long = case
    sequences = [sequence for sample in found for sequence in sample]
    ends = ends_of([size for size, _ in sequences])
    trained = np.repeat(np.array([t for _, t in sequences], bool), [size for size, _ in sequences])
    fitting = fit(ends, trained, context, together=together, score=score, too_long=too_long)  # type: ignore[arg-type]
    return ends, fitting, apart(ends, fitting, context, together=together, packing=packing)


def sequences_of(rows: Rows) -> list[list[int]]:
    assert rows.sequences is not None
    return [part.tolist() for part in np.split(rows.sequences, rows.ends)[: len(rows)]]


@given(samples(), st.booleans())
def test_each_kept_sample_stands_whole_in_one_row_and_no_row_passes_the_context(case: Case, packing: bool) -> None:
    _, together, context, _, _ = case
    _, fitting, rows = packed(case, packing)
    there = [number for row in sequences_of(rows) for number in row]
    kept = np.flatnonzero(fitting.kept)
    assert sorted(there) == [together * sample + i for sample in kept.tolist() for i in range(together)]
    for row in sequences_of(rows):
        assert row == [first + i for first in row[::together] for i in range(together)]  # pairs stay together, in order
        assert packing or len(row) == together
    used = [int(part.sum()) for part in np.split(rows.lengths, rows.ends)[: len(rows)]]
    assert max(used, default=0) <= context


@given(samples(), st.booleans())
def test_pieces_start_at_their_sequences_and_targets_count_what_is_trained(case: Case, packing: bool) -> None:
    found, _, _, score, _ = case
    ends, _, rows = packed(case, packing)
    sequences = [sequence for sample in found for sequence in sample]
    targets, at = [], 0
    for row in sequences_of(rows):
        targets.append(0)
        for number in row:
            size, trained = sequences[number]
            length = int(rows.lengths[at])
            assert rows.starts[at] == ends[number] - size
            assert 1 <= length <= size - (not score)
            targets[-1] += min(length, size - 1) if trained else 0
            at += 1
    assert rows.targets.tolist() == targets
    assert at == len(rows.starts) == rows.pieces.sum()


@given(samples())
def test_a_sample_is_left_out_where_it_is_long_or_a_sequence_of_it_trains_nothing(case: Case) -> None:
    found, _, context, score, too_long = case
    _, fitting, _ = packed(case)
    for i, sample in enumerate(found):
        positions = sum(size - (not score) for size, _ in sample)
        empty = any(size < 2 or not trained for size, trained in sample)
        assert (fitting.long[i], fitting.empty[i]) == (positions > context, empty)
        assert fitting.kept[i] == (not empty and (too_long == "truncate" or positions <= context))


def test_without_a_mask_every_token_after_the_first_is_trained() -> None:
    ends = ends_of([4, 1, 3])
    found = fit(ends, None, 8)
    assert found.targets.tolist() == [3, 0, 2]
    rows = apart(ends, found, 8)
    assert (sequences_of(rows), rows.targets.tolist(), rows.starts.tolist()) == ([[0, 2]], [5], [0, 5])


def test_long_samples_are_left_out_or_lose_their_ends() -> None:
    ends, trained = ends_of([4, 9]), np.array([False] * 2 + [True] * 11)
    for too_long in ("skip", "fail"):
        found = fit(ends, trained, 6, too_long=too_long)  # type: ignore[arg-type]
        assert (found.long.tolist(), found.kept.tolist()) == ([False, True], [True, False])
    found = fit(ends, trained, 6, too_long="truncate")
    assert (found.kept.tolist(), found.lengths.tolist(), found.targets.tolist()) == ([True, True], [3, 6], [2, 6])


def test_a_sample_whose_trained_part_is_cut_off_is_left_out() -> None:
    found = fit(ends_of([9]), np.array([False] * 7 + [True] * 2), 4, too_long="truncate")
    assert (found.empty.tolist(), found.kept.tolist()) == ([True], [False])


def test_each_half_of_a_truncated_pair_keeps_half_of_the_context() -> None:
    found = fit(ends_of([9, 2, 3, 3]), None, 6, together=2, too_long="truncate")
    assert found.long.tolist() == [True, False]
    assert found.lengths.tolist() == [3, 1, 2, 2]


def test_a_score_is_read_at_the_last_token() -> None:
    ends = ends_of([3, 4])
    assert fit(ends, None, 7, together=2, score=True).lengths.tolist() == [3, 4]
    assert fit(ends, None, 6, together=2, score=True).long.tolist() == [True]
    assert fit(ends, None, 6, together=2).long.tolist() == [False]


def test_the_digest_sees_which_row_a_sample_is_in() -> None:
    ends = ends_of([4, 4])
    found = fit(ends, None, 6)
    one, two = apart(ends, found, 6), apart(ends, found, 6, packing=False)
    assert (len(one), len(two)) == (1, 2)
    assert digest(one) != digest(two) != digest(stream(ends, 6, packing=False))
