import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.corpus import Block, Column, Part, load, write_meta
from samestep.errors import DataError

META = {
    "vocabulary": 300,
    "eos": 7,
    "held_out_bytes": 5,
    "held_out_zlib": 9,
    "format": "messages",
    "files": ["a.jsonl", "b.jsonl"],
    "skipped": ["a.jsonl:3: no"],
    "skipped_count": 1,
}


def block(lengths: list[int], line: int) -> Block:
    count = sum(lengths)
    lines = np.arange(line, line + len(lengths))
    ids = np.arange(count, dtype=np.uint16)
    return Block(ids, np.array(lengths, np.int64), ids % 2 == 0, lines, len(lengths))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus of one training file in two pieces and of a held-out part without a sequence."""
    with ExitStack() as files:
        train = Part(tmp_path, "train", np.uint16, True, files)
        Part(tmp_path, "held_out", np.uint16, True, files)
        train.append(block([3, 2], 1), 0)
        train.append(block([4], 9), 1)
        assert train.samples == 3
    write_meta(tmp_path, "the tokenizer", **META)
    return tmp_path


def test_what_was_written_piece_by_piece_is_mapped_as_one(folder: Path) -> None:
    corpus = load(folder)
    assert corpus.train.ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert corpus.train.ends.tolist() == [3, 5, 9]
    assert (
        corpus.train.trained is not None
        and corpus.train.trained.tolist() == [True, False] * 2 + [True] + [True, False] * 2
    )
    assert corpus.train.places.tolist() == [[0, 1], [0, 2], [1, 9]]
    assert [array.dtype.name for array in vars(corpus.train).values()] == ["uint16", "int64", "bool", "int64"]
    assert all(isinstance(array, np.memmap) and not array.flags.writeable for array in vars(corpus.train).values())


def test_a_part_without_a_sequence_is_empty_arrays(folder: Path) -> None:
    held_out = load(folder).held_out
    assert [array.shape for array in vars(held_out).values()] == [(0,), (0,), (0,), (0, 2)]


def test_the_facts_of_a_corpus_are_read_back(folder: Path) -> None:
    corpus = load(folder)
    assert {name: getattr(corpus, name) for name in META} == META
    assert corpus.tokenizer_file.read_text() == "the tokenizer"


def test_without_masks_all_is_trained(tmp_path: Path) -> None:
    with ExitStack() as files:
        for name in ("train", "held_out"):
            Part(tmp_path, name, np.uint32, False, files).append(block([3], 0), 0)
    write_meta(tmp_path, "", **META)
    assert load(tmp_path).train.trained is None
    assert load(tmp_path).train.ids.dtype == np.uint32


@pytest.mark.parametrize(
    "broken", ["train.ids.npy", "train.trained.npy", "held_out.ends.npy", "train.places.npy", "meta.json"]
)
@pytest.mark.parametrize("kept", [0, 60])
def test_a_cut_file_is_found(folder: Path, broken: str, kept: int) -> None:
    (folder / broken).write_bytes((folder / broken).read_bytes()[:kept])
    with pytest.raises(DataError, match=r"no whole prepared corpus \(.*\); delete it and start again"):
        load(folder)


def test_other_facts_are_no_corpus(folder: Path) -> None:
    (folder / "meta.json").write_text(json.dumps(META | {"colour": "red"}))
    with pytest.raises(DataError, match="no whole prepared corpus"):
        load(folder)


@given(st.lists(st.lists(st.integers(0, 65_535), max_size=5), max_size=6))
def test_a_column_is_what_was_appended(tmp_path_factory: pytest.TempPathFactory, pieces: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("column") / "a.npy"
    with Column(path, "<u2") as column:
        for piece in pieces:
            column.append(np.array(piece, np.uint16))
    assert np.load(path, allow_pickle=False).tolist() == [number for piece in pieces for number in piece]


def test_the_header_has_room_for_any_length(tmp_path: Path) -> None:
    with Column(tmp_path / "a.npy", "<i8", (2,)) as column:
        column.append(np.ones((3, 2), np.int64))
        column._length = 10**15
    content = (tmp_path / "a.npy").read_bytes()
    assert b"(1000000000000000, 2)" in content[:128] and len(content) == 128 + 3 * 2 * 8


def test_a_column_that_failed_does_not_look_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Column(tmp_path / "a.npy", "<u2") as column:
        column.append(np.ones(3, np.uint16))
        raise ZeroDivisionError
    assert len(np.load(tmp_path / "a.npy", allow_pickle=False)) == 0
