from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.pack import Integers, Rows, digest, masked, plan

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
    rows = plan(ends, context, packing)
    firsts = {0, *ends.tolist()}
    found = [i for indices in target_indices(rows, ends) for i in indices]
    assert found == [i for i in range(sum(lengths)) if i not in firsts]


@given(CORPORA, CONTEXTS, st.booleans())
def test_targets_are_counted_without_reading_a_token(lengths: list[int], context: int, packing: bool) -> None:
    ends = ends_of(lengths)
    rows = plan(ends, context, packing)
    assert rows.targets.tolist() == [len(indices) for indices in target_indices(rows, ends)]


@given(CORPORA, CONTEXTS)
def test_packed_rows_are_one_stream_cut_at_multiples_of_the_context(lengths: list[int], context: int) -> None:
    rows = plan(ends_of(lengths), context, packing=True)
    assert rows.starts.tolist() == list(range(0, sum(lengths) - 1, context))
    assert rows.lengths.sum() == sum(lengths) - 1
    assert (rows.lengths[:-1] == context).all()


@given(CORPORA, CONTEXTS)
def test_unpacked_rows_never_cross_documents_and_mask_nothing(lengths: list[int], context: int) -> None:
    ends = ends_of(lengths)
    rows = plan(ends, context, packing=False)
    assert (rows.targets == rows.lengths).all()
    assert ((rows.lengths >= 1) & (rows.lengths <= context)).all()
    first, last = rows.starts, rows.starts + rows.lengths
    assert (np.searchsorted(ends, first, "right") == np.searchsorted(ends, last, "right")).all()


def test_a_document_starts_an_unpacked_row_of_its_own() -> None:
    rows = plan(ends_of([6, 1, 3]), 4, packing=False)
    assert rows.starts.tolist() == [0, 4, 7]
    assert rows.lengths.tolist() == [4, 1, 2]


def test_the_first_token_of_a_later_document_is_masked() -> None:
    ends = ends_of([3, 4, 2])
    rows = plan(ends, 4, packing=True)
    assert rows.lengths.tolist() == [4, 4]
    assert [masked(ends, start, 4).tolist() for start in (0, 4)] == [[2], [2]]
    assert rows.targets.tolist() == [3, 3]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("lengths", [[], [1], [1, 1]])
def test_corpora_without_a_target_have_none(lengths: list[int], packing: bool) -> None:
    assert plan(ends_of(lengths), 4, packing).targets.sum() == 0


@pytest.mark.parametrize("packing", [True, False])
def test_columns_are_int64_in_memory_even_from_a_mapped_file(tmp_path: Path, packing: bool) -> None:
    np.save(tmp_path / "ends.npy", ends_of([5, 9]))
    rows = plan(np.load(tmp_path / "ends.npy", mmap_mode="r", allow_pickle=False), 4, packing)
    for column in (rows.starts, rows.lengths, rows.targets):
        assert not isinstance(column, np.memmap)
        assert (column.dtype.name, len(column)) == ("int64", len(rows))


def test_the_digest_is_the_same_for_ever() -> None:
    rows = plan(ends_of([3, 4, 2]), 4, packing=True)
    assert digest(rows) == "d9ed5ea2ab47e9af5ccbd8cf52b00c864b3d3f7e05288701729022d47f8195b3"


@given(CORPORA, CONTEXTS, st.booleans(), st.integers(0, 2), st.integers(0))
def test_the_digest_sees_every_number(lengths: list[int], context: int, packing: bool, column: int, where: int) -> None:
    rows = plan(ends_of(lengths), context, packing)
    columns = [rows.starts.copy(), rows.lengths.copy(), rows.targets.copy()]
    assert digest(Rows(*columns)) == digest(rows)
    if len(rows):
        columns[column][where % len(rows)] += 1
        assert digest(Rows(*columns)) != digest(rows)
