import io
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.data import source as module
from samestep.data.source import (
    BLOCK,
    LINE_LIMIT,
    PART,
    Chunk,
    Invalid,
    Row,
    chunks,
    fingerprint,
    is_held_out,
    position,
    rows,
)
from samestep.errors import DataError
from samestep.recipe.schema import Data


def asked(source: str, format: str = "auto") -> Data:
    return Data.model_validate({"source": source, "format": format})


def cut(base: Path, source: str, format: str = "auto") -> list[Chunk]:
    return list(chunks(source, asked(source, format), base))


def read(base: Path, source: str, format: str = "auto") -> list[Row]:
    data = asked(source, format)
    return [row for chunk in chunks(source, data, base) for row in rows(chunk)]


def texts(base: Path, source: str, format: str = "auto") -> dict[str, Any]:
    return {row.name: row.fields["text"] for row in read(base, source, format) if isinstance(row.fields, dict)}


def refusal(base: Path, source: str, format: str = "auto") -> str:
    with pytest.raises(DataError) as caught:
        read(base, source, format)
    message = str(caught.value)
    assert "\n" not in message
    return message


def invalid(base: Path, content: bytes) -> list[str]:
    """What is said of the lines of a.jsonl that are no rows, after the folder's name."""
    (base / "a.jsonl").write_bytes(content)
    messages = [row.fields.message for row in read(base, "a.jsonl") if isinstance(row.fields, Invalid)]
    assert not any("\n" in message for message in messages)
    return [message.removeprefix(f"{base}/") for message in messages]


def test_the_standard_library_is_read_within_a_second() -> None:
    cut(Path(), "python-stdlib")  # from the disk, at most once
    start = time.perf_counter()
    found = texts(Path(), "python-stdlib")
    fingerprint("python-stdlib", Data(), Path())
    assert time.perf_counter() - start < 1
    assert "class ArgumentParser(" in found["argparse.py"]


def test_files_are_documents_in_the_order_of_names_and_empty_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "b" / "a.md").write_text("one")
    (tmp_path / "empty.txt").write_bytes(b"\xef\xbb\xbf")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n\n{"text": "four", "id": 1}\n')
    assert read(tmp_path, ".") == [
        Row("b.txt", f"{tmp_path}/b.txt", {"text": "two"}),
        Row("b/a.md", f"{tmp_path}/b/a.md", {"text": "one"}),
        Row("c.jsonl:1", f"{tmp_path}/c.jsonl:1", {"text": "three"}),
        Row("c.jsonl:3", f"{tmp_path}/c.jsonl:3", {"text": "four", "id": 1}),
    ]


def test_text_is_kept_byte_for_byte_but_for_the_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\xef\xbb\xbftwo\x00\xc3\xa9")
    assert texts(tmp_path, "a.txt") == texts(tmp_path, ".") == {"a.txt": "one\r\n\ufefftwo\x00é"}


def test_a_byte_that_is_not_utf8_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("één\nné ".encode() + b"\xff rest")
    for source in (".", "a.txt", f"file://{tmp_path}"):
        said = refusal(tmp_path, source)
        assert "/a.txt:2:4: byte 0xff is not UTF-8; convert the file with iconv" in said and "cannot" not in said


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_source_without_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "b.jsonl").write_text(content)
    assert "holds no text" in refusal(tmp_path, ".")
    assert "holds no text" in refusal(tmp_path, "python-stdlib/test")


def parts_at_once(text: str) -> list[tuple[str, str]]:
    """What the parts of big.txt are, said over the whole text."""
    if len(text) <= PART:
        return [("big.txt", text)]
    found, held, first = [], "", 1
    lines = list(io.StringIO(text, newline="\n"))
    for number, line in enumerate(lines, 1):
        held += line
        if len(held) >= PART or number == len(lines):
            found.append((f"big.txt:{first}", held))
            held, first = "", number + 1
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("source")


SIZES = st.lists(st.sampled_from([0, 100, PART // 2 + 9, PART - 1, PART, 3 * PART]), min_size=1, max_size=16)


@given(SIZES, st.sampled_from("xé🙂\r\u2028"), st.sampled_from([PART * 4, PART * 5]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_parts_of_a_text_do_not_depend_on_how_it_is_cut(
    folder: Path, sizes: list[int], letter: str, block: int, ended: bool
) -> None:
    text = "\n".join(letter * size for size in sizes) + "\n" * ended
    (folder / "big.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        if text:
            assert list(texts(folder, "big.txt").items()) == parts_at_once(text)


@given(st.lists(st.text(max_size=30), max_size=30), st.integers(1, 50), st.sampled_from(["\n", "\r\n", "\n\n"]))
@settings(max_examples=60, deadline=None)
def test_lines_are_read_the_same_however_they_are_cut(
    folder: Path, values: list[str], block: int, between: str
) -> None:
    lines = [json.dumps({"text": value}, ensure_ascii="\\u" in ascii(value)) for value in values]
    (folder / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + between.join(lines).encode("utf-8", "replace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block + 3)
        found = read(folder, "rows.jsonl") if values else []
    assert [row.fields for row in found] == [{"text": value} for value in values]
    assert [row.name for row in found] == [f"rows.jsonl:{1 + i * between.count(chr(10))}" for i in range(len(values))]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028two\x85"}\n', "utf-8")
    assert texts(tmp_path, "a.jsonl") == {"a.jsonl:1": "one\u2028two\x85"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": ', "2:10: not JSON (Expecting value); every line of JSONL is one whole object"),
        (b'{"text": "a"} {"text": "b"}', "2:15: not JSON (Extra data)"),
        (b"[" * 100_000, "2:1: not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "2:1: not JSON (Exceeds the limit"),
        (b'  ["a"]', "2:3: a line of JSONL must be an object, this is of type list"),
        (b"null", "2:1: a line of JSONL must be an object, this is of type NoneType"),
        ('{"é": "\0"}'.encode(), "2:8: a NUL byte, which is in no JSON"),
        ('{"é": "'.encode() + b'\xff"}', "2:8: byte 0xff is not UTF-8; convert the file with iconv"),
        (b"\xef\xbb\xbf{}", "2:1: not JSON (Unexpected UTF-8 BOM"),
        (b'{"text": "a\\ud800"}', "2:12: \\ud800 without its other half; repair or drop the row"),
        (b'{"m": [{"c": "\\uD83D\\ude00\\uDE00"}]}', "2:27: \\ude00 without its other half"),
        (b'{"\\udfff": 1}', "2:3: \\udfff without its other half"),
        (b'{"t": "\\ud800\\ud83d\\ude00"}', "2:8: \\ud800 without its other half"),
        (b'{"t": "\\\\\\ud800"}', "2:10: \\ud800 without its other half"),
    ],
)
def test_a_line_that_is_no_row_is_named_by_its_place(tmp_path: Path, line: bytes, said: str) -> None:
    (message,) = invalid(tmp_path, b'{"text": "good"}\r\n' + line + b'\r\n{"text": "good"}')
    assert message.startswith(f"a.jsonl:{said}")


def test_whole_pairs_escaped_nul_and_spelt_escapes_are_ordinary_characters(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\uDE00 \\u0000 \\\\ud800"}')
    assert texts(tmp_path, "a.jsonl") == {"a.jsonl:1": "😀 \0 \\ud800"}


@given(st.text(st.characters(categories=["Cs", "L", "P"]) | st.sampled_from("\\u\ud800\udc00"), max_size=12))
@settings(max_examples=300)
def test_a_string_is_refused_exactly_where_it_is_not_utf8(text: str) -> None:
    line = json.dumps({"text": text}).encode()
    (row,) = rows(Chunk("a", "a", 1, "jsonl", line, False))
    try:
        json.loads(line)["text"].encode()
    except UnicodeEncodeError:
        assert isinstance(row.fields, Invalid)
    else:
        assert row.fields == json.loads(line)


@pytest.mark.parametrize("content", ['[{"text": "a"}]', '\ufeff [\n{"text": "a"},\n{"text": "b"}\n]\n', "["])
def test_a_file_that_is_one_json_array_is_refused_with_the_way_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content, "utf-8")
    said = refusal(tmp_path, "a.json")
    assert "a.json:1:1: the file is one JSON array" in said and "jq -c '.[]'" in said


def test_a_first_line_that_is_an_array_among_others_is_one_bad_row(tmp_path: Path) -> None:
    assert len(invalid(tmp_path, b'["text"]\n{"text": "a"}')) == 1


def test_a_line_over_the_limit_is_named_with_its_size_and_never_held(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "one"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n\n{"text": "two"}\n')
    tracemalloc.start()
    found = read(tmp_path, "a.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.name for row in found] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:4"]
    said = "a.jsonl:2:1: the line has 100 MB, and a row at most 64; split it or drop it"
    assert isinstance(found[1].fields, Invalid) and found[1].fields.message == f"{tmp_path}/{said}"
    assert found[2].fields == {"text": "two"}
    assert peak < 1.2 * LINE_LIMIT


@pytest.mark.parametrize("end", ["", "\n", "\n{}"])
def test_lines_about_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(module, "LINE_LIMIT", 40)
    for block in range(4, 60):
        monkeypatch.setattr(module, "BLOCK", block)
        lines = [json.dumps({"t": "x" * (size - 9)}) for size in (40, 41, 10, 97, 40)]
        said = invalid(tmp_path, ("\n".join(lines) + end).encode())
        assert [message.partition(": the line has")[0] for message in said] == ["a.jsonl:2:1", "a.jsonl:4:1"]


def test_a_long_file_of_lines_is_read_in_bounded_memory(tmp_path: Path) -> None:
    line = b'{"text": "%s"}\n' % (b"x" * 2000)
    (tmp_path / "a.jsonl").write_bytes(line * 20_000)
    tracemalloc.start()
    count = sum(chunk.payload.count(b"\n") for chunk in chunks("a.jsonl", Data(), tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 8 * BLOCK


def test_one_long_text_is_read_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((b"x" * 4000 + b"\n") * 5_000)
    tracemalloc.start()
    sizes = [len(chunk.payload) for chunk in chunks("a.txt", Data(), tmp_path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 5_000 * 4001 and peak < 8 * BLOCK


TABLE = pa.table({"text": ["one", "", "three"], "turns": [[{"role": "user"}], [], None], "id": [1, 2, 3]})


def write(path: Path, table: pa.Table, container: str) -> None:
    if container == "parquet":
        pq.write_table(table, path, row_group_size=20_000)
        return
    new = pa.ipc.new_file if container == "feather" else pa.ipc.new_stream
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)


CONTAINERS = pytest.mark.parametrize("container", ["parquet", "arrow", "feather"])


@CONTAINERS
def test_rows_of_tables_are_plain_python(tmp_path: Path, container: str) -> None:
    name = f"a.{container.replace('feather', 'arrow')}"
    write(tmp_path / name, TABLE, container)
    found = read(tmp_path, name)
    assert [row.fields for row in found] == TABLE.to_pylist()
    assert [row.name for row in found] == [f"{name}:{i}" for i in (1, 2, 3)]
    assert found[2].where == f"{tmp_path}/{name}:3"


@CONTAINERS
def test_a_long_table_comes_in_small_chunks_and_bounded_memory(tmp_path: Path, container: str) -> None:
    table = pa.table({"text": [f"{i} {i * i} " * 60 for i in range(60_000)]})
    write(tmp_path / "a.data", table, container)
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    first, sizes = 1, []
    for chunk in chunks("a.data", asked("a.data", "parquet" if container == "parquet" else "arrow"), tmp_path):
        assert chunk.first == first
        first += sum(batch.num_rows for batch in pa.ipc.open_stream(chunk.payload))
        sizes.append(len(chunk.payload))
    pa.set_memory_pool(before)
    assert first == 60_001 and max(sizes) < 2.5 * BLOCK and len(sizes) > 20
    assert pool.max_memory() < 0.4 * table.nbytes


def test_categories_survive_the_cutting(tmp_path: Path) -> None:
    values = ["a", "b", None] * 500
    write(tmp_path / "a.arrow", pa.table({"text": pa.array(values).dictionary_encode()}), "arrow")
    assert list(texts(tmp_path, "a.arrow").values()) == values


def test_a_row_of_a_table_that_is_not_utf8_is_named_alone(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"tw\xff", b"three"]).cast(pa.binary()).view(pa.string())
    write(tmp_path / "a.parquet", pa.table({"text": texts}), "parquet")
    one, two, three = read(tmp_path, "a.parquet")
    assert (one.fields, three.fields) == ({"text": "one"}, {"text": "three"})
    assert isinstance(two.fields, Invalid)
    assert two.fields.message == f"{tmp_path}/a.parquet:2: byte 0xff in a text is not UTF-8; repair or drop the row"


def test_a_value_that_python_cannot_hold_is_named_alone(tmp_path: Path) -> None:
    days = pa.array([0, 2**40], pa.int64()).cast(pa.timestamp("s"))
    write(tmp_path / "a.parquet", pa.table({"day": days.view(pa.timestamp("s"))}), "arrow")
    (tmp_path / "a.parquet").rename(tmp_path / "a.arrow")
    good, bad = read(tmp_path, "a.arrow")
    assert isinstance(good.fields, dict) and isinstance(bad.fields, Invalid)
    assert "a.arrow:2: a value that Python cannot hold (" in bad.fields.message


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"ARROW1 and no more", b"some text that is no table"])
def test_a_broken_table_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name}: not readable as {name[2:].capitalize()} (" in refusal(tmp_path, ".")


def test_a_table_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", pa.table({"text": ["x" * 1000] * 5000}), "arrow")
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:2_000_000])
    assert "a.arrow: not readable as Arrow (" in refusal(tmp_path, ".")


def test_an_address_is_read_like_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ')
    write(tmp_path / "b.parquet", TABLE, "parquet")
    address = f"file://{tmp_path}"
    local, far = read(tmp_path, "."), read(Path(), address)
    assert [row.name for row in far] == [row.name for row in local]
    assert far[0].where == f"{address}/a.jsonl:1" and far[2:] != [] and far[2].fields == local[2].fields


def test_the_fingerprint_tells_names_contents_and_being_alone_apart(tmp_path: Path) -> None:
    seen = set()
    for i, contents in enumerate([{"a.txt": "b"}, {"b.txt": "b"}, {"a.txt": "c"}, {"a.txt": "b", "c.txt": ""}]):
        (tmp_path / str(i)).mkdir()
        for name, content in contents.items():
            (tmp_path / str(i) / name).write_text(content)
        seen.add(fingerprint(str(i), Data(), tmp_path))
    seen.add(fingerprint("0/a.txt", Data(), tmp_path))
    assert len(seen) == 5
    assert fingerprint("0", Data(), tmp_path) == fingerprint(str(tmp_path / "0"), Data(), Path()) in seen


def test_the_fingerprint_of_an_address_needs_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    address = f"file://{tmp_path}"
    before = fingerprint(address, Data(), Path())
    monkeypatch.setattr(module, "opened", None)
    assert fingerprint(address, Data(), Path()) == before
    (tmp_path / "a.txt").write_text("longer")
    assert fingerprint(address, Data(), Path()) != before


def test_a_file_that_cannot_be_hashed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"a\.txt: No such file or directory; make it readable"):
        fingerprint(".", Data(), tmp_path)


def test_a_document_keeps_its_place_for_ever() -> None:
    assert position("argparse.py") == pytest.approx(0.33931810356806646, abs=1e-15)
    assert [is_held_out("argparse.py", share) for share in (0.0, 0.33, 0.34)] == [False, False, True]


def test_a_name_that_is_not_utf8_has_a_place() -> None:
    assert 0 <= position("caf\udce9") < 1


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_what_is_held_out_stays_so_at_a_larger_share(name: str, one: float, other: float) -> None:
    name = name.encode("utf-8", "ignore").decode()
    assert is_held_out(name, min(one, other)) <= is_held_out(name, max(one, other))


def test_the_share_held_out_is_that_asked_for() -> None:
    held_out = sum(is_held_out(f"file.jsonl:{i}", 0.1) for i in range(10_000))
    assert 900 < held_out < 1100
