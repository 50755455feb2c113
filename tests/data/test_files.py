import gzip
import json
import logging
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from samestep.data.files import NOT_STDLIB, File, files, opened
from samestep.errors import DataError
from samestep.recipe.schema import Data


def listed(base: Path, source: str, format: str = "auto") -> list[File]:
    return files(source, Data.model_validate({"source": source, "format": format}), base)


def names(base: Path, source: str, format: str = "auto") -> list[str]:
    return [file.name for file in listed(base, source, format)]


def content(file: File) -> bytes:
    with opened(file) as stream:
        return stream.read()


def refusal(base: Path, source: str, format: str = "auto") -> str:
    with pytest.raises(DataError) as caught:
        for file in listed(base, source, format):
            content(file)
    message = str(caught.value)
    assert "\n" not in message
    return message


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")


def test_the_standard_library_is_its_utf8_source_without_tests() -> None:
    found = names(Path("/nowhere"), "python-stdlib")
    assert {"argparse.py", "email/message.py", "json/decoder.py", "unittest/case.py"} <= set(found)
    assert found == sorted(found)
    assert all(name.endswith(".py") and NOT_STDLIB.isdisjoint(name.split("/")) for name in found)


def test_a_package_of_the_standard_library_keeps_its_names() -> None:
    whole = names(Path(), "python-stdlib")
    assert names(Path(), "python-stdlib/email") == [name for name in whole if name.startswith("email/")]


def test_files_of_the_standard_library_that_are_not_utf8_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.py").write_text("pass")
    (tmp_path / "odd.py").write_bytes(b"# \xff")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert names(Path(), "python-stdlib") == ["good.py"]


def test_what_is_no_package_of_the_standard_library_is_not_read() -> None:
    assert "did you mean email?" in refusal(Path(), "python-stdlib/emial")
    assert names(Path(), "python-stdlib/test") == names(Path(), "python-stdlib/json/../../..") == []
    assert "use format: auto" in refusal(Path(), "python-stdlib", "jsonl")


def test_a_folder_is_listed_by_suffix_in_the_order_of_names(tmp_path: Path) -> None:
    fill(tmp_path, "b/a.MD", "b.txt", "c.jsonl.gz", "d.json", "e.parquet", "f.arrow", "g.txt.zst", "h.png", "i.gz")
    kinds = {file.name: (file.kind, file.codec) for file in listed(tmp_path, ".")}
    assert list(kinds.items()) == [
        ("b.txt", ("text", None)),
        ("b/a.MD", ("text", None)),
        ("c.jsonl.gz", ("jsonl", "gzip")),
        ("d.json", ("jsonl", None)),
        ("e.parquet", ("parquet", None)),
        ("f.arrow", ("arrow", None)),
        ("g.txt.zst", ("text", "zstd")),
    ]


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, ".git/a.txt", ".b.txt", "c.txt")
    assert names(tmp_path, ".") == ["c.txt"]


def test_format_text_takes_every_suffix_and_another_format_its_own(tmp_path: Path) -> None:
    fill(tmp_path, "page.html", "notes.md", "rows.jsonl", "table.parquet.gz")
    assert names(tmp_path, ".", "text") == ["notes.md", "page.html", "rows.jsonl", "table.parquet.gz"]
    assert names(tmp_path, ".", "jsonl") == ["rows.jsonl"]
    assert names(tmp_path, ".", "parquet") == []


@pytest.mark.parametrize(
    ("name", "codec"), [("rows.data", None), ("rows.data.gz", "gzip"), ("rows", None), ("rows.json.ZST", "zstd")]
)
def test_a_file_alone_is_taken_in_the_format_asked_for(tmp_path: Path, name: str, codec: str | None) -> None:
    fill(tmp_path, name)
    (file,) = listed(tmp_path, name, "jsonl")
    assert (file.name, file.path, file.kind, file.codec, file.alone) == (
        name,
        str(tmp_path / name),
        "jsonl",
        codec,
        True,
    )


@pytest.mark.parametrize(("name", "suffix"), [("a.data", ".data"), ("a.csv.gz", ".csv.gz"), ("a", ""), ("a.gz", ".gz")])
def test_a_file_alone_of_an_unknown_suffix_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    fill(tmp_path, name)
    assert f"'{suffix}'; set data.format" in refusal(tmp_path, name)


def test_absolute_sources_ignore_the_base(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt")
    assert names(Path("/nowhere"), str(tmp_path / "a.txt")) == ["a.txt"]


def test_the_nearest_name_is_offered_for_a_missing_one(tmp_path: Path) -> None:
    fill(tmp_path, "corpus.txt")
    assert refusal(tmp_path, "corpsu.txt").endswith("corpsu.txt; did you mean corpus.txt?")
    assert "check data.source" in refusal(tmp_path, "a/b/c")


def test_linked_folders_are_read_and_loops_refused(tmp_path: Path) -> None:
    fill(tmp_path, "real/a.txt")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "real")
    assert names(tmp_path, "corpus") == ["link/a.txt"]
    (tmp_path / "real" / "back").symlink_to(tmp_path / "corpus")
    assert "which it stands in; remove the link" in refusal(tmp_path, "corpus")


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    assert "a.txt: No such file or directory; make it readable" in refusal(tmp_path, ".")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `one`, of a dataset in two shards, and `several`, of its splits, as `datasets` writes them."""
    import datasets

    datasets.disable_progress_bars()
    base = tmp_path_factory.mktemp("saved")
    rows = datasets.Dataset.from_dict({"text": ["one", "two", "three"]})
    rows.save_to_disk(base / "one", num_shards=2)
    datasets.DatasetDict({"test": rows, "train": rows}).save_to_disk(base / "several")
    datasets.DatasetDict({"test": rows, "dev": rows}).save_to_disk(base / "trainless")
    return base


@pytest.mark.parametrize("format", ["auto", "arrow"])
def test_a_folder_written_by_datasets_is_its_arrow_files(saved: Path, format: str) -> None:
    found = listed(saved, "one", format)
    assert [file.name for file in found] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert {file.kind for file in found} == {"arrow"}


def test_of_splits_written_by_datasets_train_is_read(saved: Path) -> None:
    assert names(saved, "several") == ["train/data-00000-of-00001.arrow"]
    assert names(saved, "several/test") == ["data-00000-of-00001.arrow"]
    assert refusal(saved, "trainless").endswith("set data.source to the folder of one of those there: test, dev")


def test_a_shard_that_is_gone_is_named(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text((saved / "one" / "state.json").read_text())
    assert "data-00000-of-00002.arrow is not there, but state.json lists it" in refusal(tmp_path, ".")


@pytest.mark.parametrize("state", ["[1]", "{}", "no JSON"])
def test_another_state_json_makes_no_dataset(tmp_path: Path, state: str) -> None:
    fill(tmp_path, "a.txt")
    (tmp_path / "state.json").write_text(state)
    assert names(tmp_path, ".") == ["a.txt", "state.json"]


def compressed(path: Path, content: bytes) -> Path:
    import pyarrow

    with pyarrow.CompressedOutputStream(str(path), {".gz": "gzip", ".zst": "zstd"}[path.suffix]) as stream:
        stream.write(content)
    return path


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_read_and_joined_ones_to_their_end(tmp_path: Path, suffix: str) -> None:
    path = compressed(tmp_path / f"a.txt{suffix}", b"one\n" * 100_000)
    path.write_bytes(path.read_bytes() * 2)
    assert content(listed(tmp_path, path.name)[0]) == b"one\n" * 200_000


@pytest.mark.parametrize(("suffix", "codec"), [(".gz", "gzip"), (".zst", "zstd")])
def test_a_compressed_file_that_was_cut_short_is_refused(tmp_path: Path, suffix: str, codec: str) -> None:
    path = compressed(tmp_path / f"a.txt{suffix}", b"one\n" * 100_000)
    path.write_bytes(path.read_bytes()[:-10])
    assert f"a.txt{suffix}: not readable as {codec} (Truncated" in refusal(tmp_path, path.name)
    path.write_bytes(b"plain text")
    assert f"a.txt{suffix}: not readable as {codec} (" in refusal(tmp_path, path.name)


ROWS = b"".join(json.dumps({"text": f"row {i}"}).encode() + b"\n" for i in range(3))


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """An S3 server of our own, with a folder, a hidden file and a dataset in its bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("bucket")
        system.pipe("bucket/chats/b.jsonl.gz", gzip.compress(ROWS))
        system.pipe("bucket/chats/a/c.txt", b"text")
        system.pipe("bucket/chats/.hidden.txt", b"text")
        yield system
    server.stop()


def test_a_folder_of_a_bucket_is_listed_and_read(bucket: Any) -> None:
    found = listed(Path(), "s3://bucket/chats/")
    assert [(file.name, file.path) for file in found] == [
        ("a/c.txt", "s3://bucket/chats/a/c.txt"),
        ("b.jsonl.gz", "s3://bucket/chats/b.jsonl.gz"),
    ]
    assert [content(file) for file in found] == [b"text", ROWS]
    assert not any(file.alone for file in found)


def test_an_object_of_a_bucket_is_a_file_alone(bucket: Any) -> None:
    (file,) = listed(Path(), "s3://bucket/chats/b.jsonl.gz")
    assert (file.name, file.path, file.alone) == ("b.jsonl.gz", "s3://bucket/chats/b.jsonl.gz", True)


def test_the_stamp_of_an_object_changes_with_its_content(bucket: Any) -> None:
    stamps = []
    for text in (b"one", b"two", b"three"):
        bucket.pipe("bucket/one/a.txt", text)
        stamps.append(listed(Path(), "s3://bucket/one")[0].stamp)
        assert listed(Path(), "s3://bucket/one/a.txt")[0].stamp == stamps[-1]
    assert len(set(stamps)) == 3


def test_a_dataset_in_a_bucket_is_its_arrow_files(bucket: Any, saved: Path) -> None:
    bucket.put(str(saved / "several"), "bucket/saved", recursive=True)
    (file,) = listed(Path(), "s3://bucket/saved")
    assert (file.name, file.kind) == ("train/data-00000-of-00001.arrow", "arrow")


@pytest.mark.parametrize("address", ["s3://bucket/nothing", "s3://no-bucket/at-all", "memory://nothing"])
def test_an_address_of_nothing_is_refused(bucket: Any, address: str) -> None:
    assert refusal(Path(), address) == f"no file or folder {address}; check data.source"


def test_an_object_that_goes_away_before_it_is_read_is_refused(bucket: Any) -> None:
    bucket.pipe("bucket/brief.txt", b"text")
    (file,) = listed(Path(), "s3://bucket/brief.txt")
    bucket.rm("bucket/brief.txt")
    with pytest.raises(DataError, match=r"^cannot read s3://bucket/brief.txt \(FileNotFoundError: .*; check the addr"):
        content(file)


def test_an_address_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", _raising(PermissionError("Forbidden\nmore")))
    assert refusal(Path(), "s3://bucket") == (
        "cannot reach s3://bucket (PermissionError: Forbidden); check the address, credentials and network"
    )


def test_an_unknown_scheme_is_refused() -> None:
    assert "cannot reach nfs5://a/b (ValueError: Protocol not known: nfs5" in refusal(Path(), "nfs5://a/b")


@pytest.mark.parametrize(
    ("address", "way"), [("s3://bucket", "pip install 'samestep[s3]'"), ("gs://bucket", "install what it names")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, address: str, way: str) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", _raising(ImportError("Install s3fs to access S3")))
    said = refusal(Path(), address)
    assert "needs another package (Install s3fs to access S3)" in said and said.endswith(way)


def _raising(error: Exception) -> Any:
    def raises(*_: object) -> None:
        raise error

    return raises
