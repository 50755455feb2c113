import sysconfig
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.source import NOT_STDLIB, Document, documents, fingerprint, is_held_out, position
from samestep.errors import DataError
from samestep.recipe.schema import Data


def read(base: Path, source: str, **settings: str) -> dict[str, str]:
    found = documents(Data.model_validate({"source": source, **settings}), base)
    return {document.name: document.text for document in found}


def refusal(base: Path, source: str, **settings: str) -> str:
    with pytest.raises(DataError) as caught:
        read(base, source, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_standard_library_is_its_utf8_source_without_tests() -> None:
    names = [document.name for document in documents(Data(), Path("/nowhere"))]
    assert {"argparse.py", "email/message.py", "json/decoder.py", "unittest/case.py"} <= set(names)
    assert names == sorted(names)
    assert all(name.endswith(".py") and NOT_STDLIB.isdisjoint(name.split("/")) for name in names)


def test_a_package_of_the_standard_library_keeps_its_names() -> None:
    whole = {document.name: document.text for document in documents(Data(), Path())}
    package = read(Path(), "python-stdlib/email")
    assert package == {name: text for name, text in whole.items() if name.startswith("email/")}
    assert "email/mime/text.py" in package


def test_the_standard_library_is_read_and_hashed_well_within_a_second() -> None:
    documents(Data(), Path())  # from the disk, at most once
    start = time.perf_counter()
    fingerprint(documents(Data(), Path()))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("python-stdlib/emial", "did you mean email?"),
        ("python-stdlib/test", "holds no text"),
        ("python-stdlib/json/../../..", "holds no text"),
    ],
)
def test_what_is_no_package_of_the_standard_library_is_refused(source: str, said: str) -> None:
    assert said in refusal(Path(), source)


def test_the_standard_library_is_no_jsonl() -> None:
    assert "use format: auto" in refusal(Path(), "python-stdlib", format="jsonl")


def test_files_of_the_standard_library_that_are_not_utf8_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.py").write_text("pass")
    (tmp_path / "odd.py").write_bytes(b"# \xff")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert read(Path(), "python-stdlib") == {"good.py": "pass"}


def test_a_folder_is_read_by_suffix_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "b").mkdir(parents=True)
    (tmp_path / "corpus" / "b.txt").write_text("two")
    (tmp_path / "corpus" / "b" / "a.MD").write_text("one")
    (tmp_path / "corpus" / "c.jsonl").write_text('{"text": "three"}\n\n{"text": "four", "id": 1}\n')
    (tmp_path / "corpus" / "picture.png").write_bytes(b"\xff\xfe")
    found = documents(Data(source="corpus"), tmp_path)
    assert found == [
        Document("b.txt", "two"),
        Document("b/a.MD", "one"),
        Document("c.jsonl:1", "three"),
        Document("c.jsonl:3", "four"),
    ]


def test_rows_keep_the_order_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("".join(f'{{"text": "{i}"}}\n' for i in range(1, 12)))
    assert list(read(tmp_path, "c.jsonl")) == [f"c.jsonl:{i}" for i in range(1, 12)]


def test_hidden_files_and_empty_texts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name, text in ((".git/a.txt", "hidden"), (".b.txt", "hidden"), ("empty.txt", ""), ("c.txt", "text")):
        (tmp_path / name).write_text(text)
    assert read(tmp_path, ".") == {"c.txt": "text"}


def test_format_text_reads_every_suffix_and_another_format_its_own(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>")
    (tmp_path / "notes.md").write_text("# Notes")
    (tmp_path / "rows.jsonl").write_text('{"text": "row"}')
    assert set(read(tmp_path, ".", format="text")) == {"notes.md", "page.html", "rows.jsonl"}
    assert set(read(tmp_path, ".", format="jsonl")) == {"rows.jsonl:1"}


def test_a_named_file_is_read_in_the_format_asked_for(tmp_path: Path) -> None:
    (tmp_path / "rows.data").write_text('{"body": "row"}')
    assert read(tmp_path, "rows.data", format="jsonl", text_field="body") == {"rows.data:1": "row"}
    assert "'.data'; set data.format" in refusal(tmp_path, "rows.data")


def test_absolute_sources_ignore_the_base(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert read(Path("/nowhere"), str(tmp_path / "a.txt")) == {"a.txt": "text"}


def test_text_is_kept_byte_for_byte_but_for_the_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\x00\xc3\xa9")
    assert read(tmp_path, "a.txt") == {"a.txt": "one\r\ntwo\x00é"}


def test_a_line_separator_inside_a_jsonl_string_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028two"}\n', "utf-8")
    assert read(tmp_path, "a.jsonl") == {"a.jsonl:1": "one\u2028two"}


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", "", "three"], "id": [1, 2, 3]}), tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet") == {"a.parquet:1": "one", "a.parquet:3": "three"}


def test_parquet_without_the_column_names_those_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["one"], "id": [1]}), tmp_path / "a.parquet")
    message = refusal(tmp_path, "a.parquet")
    assert message.endswith("a.parquet: no field 'text'; set data.text_field to one of those there: body, id")


@pytest.mark.parametrize(("values", "said"), [([1], "type int"), (["one", None], "a.parquet:2: field 'text' must be")])
def test_parquet_values_that_are_no_text_are_refused(tmp_path: Path, values: list[object], said: str) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    assert said in refusal(tmp_path, "a.parquet")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    assert "a.parquet: not readable as Parquet" in refusal(tmp_path, ".")


def test_the_nearest_name_is_offered_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    assert refusal(tmp_path, "corpsu.txt").endswith("corpsu.txt; did you mean corpus.txt?")
    assert "check data.source" in refusal(tmp_path, "a/b/c")


def test_a_byte_that_is_not_utf8_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("één\nné ".encode() + b"\xff rest")
    assert "a.txt:2:4: byte 0xff is not UTF-8; convert it with iconv" in refusal(tmp_path, ".")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": ', "a.jsonl:2:10: not JSON (Expecting value)"),
        ("[" * 100_000, "a.jsonl:2:1: not JSON"),
        ('  ["a"]', "a.jsonl:2:3: a line of JSONL must be an object, this is of type list"),
        (' {"a": 1, "b": 2}', "a.jsonl:2:2: no field 'text'; set data.text_field to one of those there: a, b"),
        ('{"text": null}', "a.jsonl:2:1: field 'text' must be text, it is of type NoneType"),
        ('{"text": "a\\ud800"}', "a.jsonl:2:1: field 'text' holds \\ud800 without its other half"),
    ],
)
def test_a_line_that_is_no_row_is_named_by_its_place(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    assert said in refusal(tmp_path, "a.jsonl")


def test_a_source_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "b.txt").write_text("")
    assert "holds no text" in refusal(tmp_path, ".")


def test_linked_folders_are_read_and_loops_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("text")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "real")
    assert read(tmp_path, "corpus") == {"link/a.txt": "text"}
    (tmp_path / "real" / "back").symlink_to(tmp_path / "corpus")
    assert "which it stands in; remove the link" in refusal(tmp_path, "corpus")


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    assert "a.txt: No such file or directory; make it readable" in refusal(tmp_path, ".")


def test_a_document_keeps_its_place_for_ever() -> None:
    assert position("argparse.py") == pytest.approx(0.33931810356806646, abs=1e-15)
    assert [is_held_out("argparse.py", share) for share in (0.0, 0.33, 0.34)] == [False, False, True]


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_what_is_held_out_stays_so_at_a_larger_share(name: str, one: float, other: float) -> None:
    name = name.encode("utf-8", "ignore").decode()
    assert is_held_out(name, min(one, other)) <= is_held_out(name, max(one, other))


def test_the_share_held_out_is_that_asked_for() -> None:
    held_out = sum(is_held_out(f"file.jsonl:{i}", 0.1) for i in range(10_000))
    assert 900 < held_out < 1100


def test_the_fingerprint_tells_names_texts_and_their_order_apart() -> None:
    corpora = [
        [("a", "b")],
        [("ab", "")],
        [("", "ab")],
        [("a", "b"), ("c", "d")],
        [("c", "d"), ("a", "b")],
        [("a", "bc"), ("", "d")],
        [("caf\udce9", "a name that is not UTF-8")],
    ]
    assert len({fingerprint([Document(*pair) for pair in corpus]) for corpus in corpora}) == len(corpora)


def test_one_text_file_as_the_whole_corpus_is_cut_at_line_ends(tmp_path: Path) -> None:
    text = "".join(f"line {number} of a long book\n" for number in range(5000))
    (tmp_path / "book.txt").write_text(text)
    found = documents(Data(source="book.txt"), tmp_path)
    assert "".join(document.text for document in found) == text
    assert len(found) > 10 and len({document.name for document in found}) == len(found)
    assert all(document.text.endswith("\n") for document in found)
    assert found[0].name == "book.txt:1"
    assert int(found[1].name.split(":")[1]) == found[0].text.count("\n") + 1
