import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from samestep.data.encode import Sequence
from samestep.data.samples import first_sample
from samestep.data.source import chunks
from samestep.data.survey import Found, Seen, Surveyor, counted, duplicates, histogram, overlap, together
from samestep.data.tokenize import Job
from samestep.data.vocabulary import Vocabulary
from samestep.recipe.schema import Data


def words() -> Vocabulary:
    tokenizer = Tokenizer(models.WordLevel({"[end]": 0, "[other]": 1, "a": 2, "b": 3}, unk_token="[other]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Vocabulary(tokenizer.to_str(), "[end]")


def seen(folder: Path, rows: dict[str, list[Any]], positions: int = 100, held_out: float = 0.0) -> Seen:
    (folder / "source").mkdir()
    for name, some in rows.items():
        lines = (row if isinstance(row, str) else json.dumps(row) for row in some)
        (folder / "source" / name).write_text("".join(f"{line}\n" for line in lines))
    data = Data(held_out=held_out, invalid="skip")
    job = Job(data, words(), "answers", first_sample("source", data, folder), "I")
    return together(Surveyor(job, positions)(list(chunks("source", data, folder))))


def test_all_samples_of_all_files_are_counted_with_their_places(tmp_path: Path) -> None:
    rows = {"1.jsonl": [{"text": "a"}, {"text": ""}, {"text": "a b"}], "2.jsonl": [{"text": "a b a"}]}
    found = seen(tmp_path, rows)
    assert found.sizes.tolist() == [2, 3, 4]  # with eos
    assert found.targets.tolist() == [1, 2, 3]
    assert [found.place(i) for i in range(3)] == ["1.jsonl:1", "1.jsonl:3", "2.jsonl:1"]
    assert (found.empty, found.invalid, found.secrets) == (1, Found(), {})


def test_a_text_file_is_a_place_without_a_line(tmp_path: Path) -> None:
    assert seen(tmp_path, {"a.txt": ["a b"]}).place(0) == "a.txt"


def test_of_pairs_both_sequences_are_counted(tmp_path: Path) -> None:
    found = seen(tmp_path, {"p.jsonl": [{"prompt": "a ", "chosen": "b b b", "rejected": "a"}]}, positions=2)
    assert found.sizes.tolist() == [5, 3]
    assert found.targets.tolist() == [4, 2]
    assert found.kept.tolist() == [2, 2]


def test_invalid_samples_are_all_counted_and_the_first_named(tmp_path: Path) -> None:
    found = seen(tmp_path, {"1.jsonl": [{"text": "a"}, *["no"] * 30, {"text": "b"}]})
    assert found.invalid.count == 30 and len(found.invalid.places) == 20
    assert all(f"1.jsonl:{i + 2}:" in said for i, said in enumerate(found.invalid.places))
    assert found.sizes.tolist() == [2, 2]


def test_secrets_are_counted_by_samples_with_the_first_places(tmp_path: Path) -> None:
    rows = [{"text": "x@y.org and z@y.org"}] * 2 + [{"text": "a"}]
    found = seen(tmp_path, {"1.jsonl": rows, "2.jsonl": rows})
    assert found.secrets == {"e-mail address": Found(4, ("1.jsonl:1", "1.jsonl:2", "2.jsonl:1"))}


def test_duplicates_are_named_with_what_they_repeat(tmp_path: Path) -> None:
    rows = {"1.jsonl": [{"text": "a"}, {"text": "b"}], "2.jsonl": [{"text": "b", "id": 7}, {"text": "b"}]}
    assert duplicates(seen(tmp_path, rows)) == Found(2, ("2.jsonl:1 is 1.jsonl:2", "2.jsonl:2 is 1.jsonl:2"))


def test_overlap_is_what_both_sides_hold(tmp_path: Path) -> None:
    found = seen(tmp_path, {"1.jsonl": [{"text": "a"}] * 10 + [{"text": "b"}]}, held_out=0.3)
    assert 0 < found.held_out.sum() < 11
    shared = overlap(found, found.digests[~found.held_out])
    assert shared.count == found.held_out[:10].sum()
    assert overlap(found, np.zeros(0, np.uint64)) == Found()


@pytest.mark.parametrize(
    ("trained", "positions", "expected"),
    [
        (None, 9, (4, 3, 3)),
        (None, 2, (4, 3, 2)),
        ([True, False, True, True], 9, (4, 2, 2)),  # the first token is no target
        ([True, False, True, True], 2, (4, 2, 1)),
    ],
)
def test_trained_tokens_are_counted_as_targets(
    trained: list[bool] | None, positions: int, expected: tuple[int, int, int]
) -> None:
    assert counted(Sequence([5, 6, 7, 8], trained), positions) == expected


@given(st.lists(st.integers(1, 5000)))
def test_the_bars_hold_every_size_once(sizes: list[int]) -> None:
    bars = histogram(np.array(sizes, np.int64))
    assert sum(bars.values()) == len(sizes)
    assert list(bars) == sorted(bars)
    for top, count in bars.items():
        assert count == sum(top // 2 < size <= top for size in sizes)
