import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.formats import FORMATS, Sample, read
from samestep.data.samples import (
    TAKEN,
    WAYS_OUT,
    check_taken,
    first_sample,
    groups,
    plain,
    read_rows,
    read_samples,
    same_format,
)
from samestep.data.source import Chunk, Invalid, chunks
from samestep.errors import DataError
from samestep.recipe.schema import Data

DATA = Data(held_out=0)
TURNS = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]


def chunk(size: int) -> Chunk:
    return Chunk("name", "path", 1, "jsonl", b"x" * size, False)


def sample(fields: dict[str, object]) -> Sample:
    found = read(fields, DATA, "rows.jsonl:1")
    assert isinstance(found, Sample)
    return found


def written(folder: Path, *rows: object) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


def test_empty_texts_are_rows_but_no_samples(tmp_path: Path) -> None:
    source = written(tmp_path, {"text": ""}, {"text": "a"}, {"text": 5})
    (found,) = chunks(source, DATA, tmp_path)
    assert [row.name for row, _ in read_rows(found, DATA)] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    one, bad = read_samples(found, DATA)
    assert one[1] == sample({"text": "a"}) and isinstance(bad[1], Invalid)


def test_the_first_usable_sample_gives_the_format(tmp_path: Path) -> None:
    source = written(tmp_path, {"text": ""}, {"messages": TURNS}, {"text": "a"})
    assert first_sample(source, DATA, tmp_path).format == "messages"


def test_an_invalid_first_sample_is_refused_or_passed_over(tmp_path: Path) -> None:
    source = written(tmp_path, {"text": 5}, {"text": "a"})
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* set data\.invalid=skip"):
        first_sample(source, DATA, tmp_path)
    assert first_sample(source, DATA.model_copy(update={"invalid": "skip"}), tmp_path) == sample({"text": "a"})


def test_a_source_without_a_sample_says_what_its_first_row_is(tmp_path: Path) -> None:
    skip = DATA.model_copy(update={"invalid": "skip"})
    with pytest.raises(DataError, match=r"holds no sample \(the first row: .*rows\.jsonl:1: .*\); name one with some"):
        first_sample(written(tmp_path, {"text": 5}, {"text": 6}), skip, tmp_path)
    with pytest.raises(DataError, match="holds no sample; name one with some"):
        first_sample(written(tmp_path, {"text": ""}), skip, tmp_path)


def test_every_format_is_taken_by_some_objective_and_its_way_out_names_it() -> None:
    assert set(WAYS_OUT) == set(FORMATS) == {format for taken in TAKEN.values() for format in taken}
    for format, way in WAYS_OUT.items():
        for objective in way.removeprefix("set objective.kind=").split(" or "):
            check_taken(format, objective, "source")


def test_another_format_than_the_first_is_invalid_and_names_both_places() -> None:
    text, other = sample({"text": "a"}), read({"messages": TURNS}, DATA, "rows.jsonl:9")
    assert same_format(text, text) is text
    refused = same_format(other, text)
    assert isinstance(refused, Invalid)
    assert refused.message.startswith("rows.jsonl:9: a messages sample in a source that begins with a text sample")
    assert same_format(refused, text) is refused


@given(st.lists(st.integers(0, 30)), st.integers(1, 50))
def test_groups_hold_all_chunks_in_order_and_are_just_large_enough(sizes: list[int], size: int) -> None:
    made = list(groups(map(chunk, sizes), size))
    assert [len(one.payload) for group in made for one in group] == sizes
    for group in made[:-1]:
        assert sum(len(one.payload) for one in group) >= size > sum(len(one.payload) for one in group[:-1])
    assert all(made)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"text": "a\nb"}, "a\nb"),
        ({"prompt": "p", "completion": "c"}, "p\nc"),
        ({"messages": TURNS}, "a b\nc"),
        ({"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "d"}]}, "a b\nc\nd"),
    ],
)
def test_a_sample_in_plain_is_all_that_it_says(fields: dict[str, object], text: str) -> None:
    assert plain(sample(fields)) == text
