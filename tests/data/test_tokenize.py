import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import samestep.data.tokenize as under_test
from samestep.data.source import documents, is_held_out
from samestep.data.tokenize import Corpus, Tokens, load, prepare
from samestep.errors import DataError
from samestep.recipe.schema import Data

ROOT = Path(under_test.__file__).parents[2]
DATA = Data(source="corpus", held_out=0.2)


def silent(_: str) -> None: ...


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A recipe's folder with a corpus of 30 documents."""
    (tmp_path / "corpus").mkdir()
    for i in range(30):
        (tmp_path / "corpus" / f"{i:02}.txt").write_text(f"Document {i} of the corpus, naïve ☃.\n" * (i + 1), "utf-8")
    return tmp_path


def prepared(base: Path, data: Data = DATA, vocabulary: int = 300) -> Corpus:
    return prepare(data, vocabulary, base, base / "cache", None, silent)


def texts(tokens: Tokens, tokenizer: Tokenizer) -> list[str]:
    starts = [0, *tokens.ends[:-1]]
    return [tokenizer.decode(tokens.ids[a : b - 1].tolist()) for a, b in zip(starts, tokens.ends, strict=True)]


def word_tokenizer(path: Path, size: int = 3) -> Path:
    """A tokenizer.json of whole words that would cut every document to 2 tokens."""
    vocabulary = {"[end]": 0, "Document": 1, "[other]": 2} | {f"word{i}": i for i in range(3, size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[other]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[end]"])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(path))
    return path


def refusal(base: Path, data: Data = DATA, tokenizer: Path | None = None, eos: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        prepare(data, 300, base, base / "cache", tokenizer, silent, eos=eos)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_tokens_are_the_documents_each_followed_by_eos(base: Path) -> None:
    corpus = prepared(base)
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_file))
    found = documents(DATA, base)
    for tokens, chosen in ((corpus.train, False), (corpus.held_out, True)):
        assert texts(tokens, tokenizer) == [d.text for d in found if is_held_out(d.name, 0.2) is chosen]
        assert (tokens.ids[tokens.ends - 1] == corpus.eos).all()
        assert (tokens.ids.dtype.name, tokens.ends.dtype.name) == ("uint16", "int64")
    assert tokenizer.token_to_id("<|endoftext|>") == corpus.eos


def test_any_text_survives_the_trained_tokenizer(base: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared(base).tokenizer_file))
    text = "\x00 \x7fé中\U0001f600\r\n\t  end "
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_sizes_of_the_held_out_texts_are_known(base: Path) -> None:
    corpus = prepared(base)
    text = "".join(d.text for d in documents(DATA, base) if is_held_out(d.name, 0.2)).encode()
    assert (corpus.held_out_bytes, corpus.held_out_zlib) == (len(text), len(zlib.compress(text, 9)))


def test_the_vocabulary_is_the_one_asked_for_or_what_the_corpus_gives(base: Path) -> None:
    said: list[str] = []
    assert prepared(base).vocabulary == 300
    small = prepare(DATA, 4096, base, base / "cache", None, said.append)
    assert 300 < small.vocabulary < 4096
    assert f"the corpus is too small for 4,096 tokens; the tokenizer has {small.vocabulary}" in said


def test_the_tokenizer_never_sees_a_held_out_document(base: Path) -> None:
    trained = prepared(base).tokenizer_file.read_text()
    for document in documents(DATA, base):
        if is_held_out(document.name, 0.2):
            (base / "corpus" / document.name).write_text("something else entirely " * 50)
    assert prepared(base).tokenizer_file.read_text() == trained


def test_a_second_start_reads_the_cache_and_says_nothing(base: Path) -> None:
    first = prepared(base)
    said: list[str] = []
    second = prepare(DATA, 300, base, base / "cache", None, said.append)
    assert said == []
    assert second.folder == first.folder


def test_replicas_map_the_corpus_by_its_folder_read_only(base: Path) -> None:
    corpus = prepared(base)
    again = load(corpus.folder)
    assert isinstance(again.train.ids, np.memmap)
    assert not again.train.ids.flags.writeable
    np.testing.assert_array_equal(again.train.ids, corpus.train.ids)
    np.testing.assert_array_equal(again.held_out.ends, corpus.held_out.ends)
    assert (again.vocabulary, again.eos, again.held_out_zlib) == (corpus.vocabulary, corpus.eos, corpus.held_out_zlib)


def test_whatever_changes_the_tokens_changes_the_folder(base: Path) -> None:
    folders = {prepared(base).folder, prepared(base, vocabulary=301).folder}
    folders.add(prepared(base, Data(source="corpus", held_out=0.5)).folder)
    tokenizer = word_tokenizer(base / "tokenizer.json")
    folders.add(prepare(DATA, 300, base, base / "cache", tokenizer, silent, eos="[end]").folder)
    folders.add(prepare(DATA, 300, base, base / "cache", tokenizer, silent, eos="Document").folder)
    (base / "corpus" / "00.txt").write_text("changed")
    folders.add(prepared(base).folder)
    assert len(folders) == 6
    assert prepared(base, Data(source="corpus", held_out=0.2, context=64, packing=False)).folder in folders


def test_threads_and_hash_seeds_leave_every_byte_as_it_is(base: Path) -> None:
    here = prepared(base).folder
    script = (
        "import sys, pathlib; from samestep.data.tokenize import prepare, Data; b = pathlib.Path(sys.argv[1])\n"
        "prepare(Data(source='corpus', held_out=0.2), 300, b, b / 'other', None, print)"
    )
    environment = {"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "5"}
    subprocess.run([sys.executable, "-c", script, base], cwd=ROOT, env=environment, check=True, capture_output=True)
    there = base / "other" / here.name
    assert sorted(p.name for p in there.iterdir()) == sorted(p.name for p in here.iterdir())
    assert all((there / path.name).read_bytes() == path.read_bytes() for path in here.iterdir())


@pytest.mark.parametrize("moment", ["(train)", "(held-out)", "publish"])
def test_a_kill_leaves_no_folder_that_counts_as_whole(base: Path, moment: str) -> None:
    script = (
        "import os, sys; from pathlib import Path; import samestep.data.tokenize as t; base = Path(sys.argv[1])\n"
        "def say(line):\n"
        "    if line.endswith(sys.argv[2]): os.kill(os.getpid(), 9)\n"
        "publish = t._publish\n"
        "t._publish = lambda *paths: (say('publish'), publish(*paths))\n"
        "t.prepare(t.Data(source='corpus', held_out=0.2), 300, base, base / 'cache', None, say)"
    )
    done = subprocess.run([sys.executable, "-c", script, base, moment], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name.startswith("part-") for path in (base / "cache").iterdir()] == [True]
    assert prepared(base).vocabulary == 300


def test_old_leftovers_of_kills_are_removed_and_fresh_ones_left_to_their_owner(base: Path) -> None:
    old, fresh = base / "cache" / "part-old", base / "cache" / "part-fresh"
    for leftover in (old, fresh):
        (leftover / "corpus").mkdir(parents=True)
    os.utime(old, (0, time.time() - 2 * under_test.LEFTOVER))
    corpus = prepared(base)
    assert sorted((base / "cache").iterdir()) == sorted([fresh, corpus.folder])


def test_two_jobs_may_prepare_the_same_corpus_at_once(base: Path) -> None:
    other: list[Corpus] = []

    def say(line: str) -> None:
        if line.startswith("encoding") and not other:
            other.append(prepared(base))

    first = prepare(DATA, 300, base, base / "cache", None, say)
    assert first.folder == other[0].folder
    assert list((base / "cache").iterdir()) == [first.folder]


def test_an_error_leaves_no_temporary_folder(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert "No space left on device; set run.cache to a folder with room" in refusal(base)
    assert list((base / "cache").iterdir()) == []


@pytest.mark.parametrize("broken", ["train.ids.npy", "held_out.ends.npy", "meta.json"])
@pytest.mark.parametrize("kept", [0, 60])
def test_a_cut_file_in_the_cache_is_found(base: Path, broken: str, kept: int) -> None:
    folder = prepared(base).folder
    (folder / broken).write_bytes((folder / broken).read_bytes()[:kept])
    with pytest.raises(DataError, match="no whole prepared corpus"):
        load(folder)


def test_nothing_held_out_is_an_empty_part(base: Path) -> None:
    corpus = prepared(base, Data(source="corpus", held_out=0))
    assert (len(corpus.held_out.ids), len(corpus.held_out.ends), corpus.held_out_bytes) == (0, 0, 0)
    assert len(corpus.train.ends) == 30


def test_a_share_that_holds_nothing_out_says_which_one_would(base: Path) -> None:
    message = refusal(base, Data(source="corpus", held_out=1e-6))
    assert "takes 0 of 30 documents" in message
    share = float(message.split("set it to ")[1].split(",")[0])
    assert len(prepared(base, Data(source="corpus", held_out=share)).held_out.ends) == 1


@pytest.mark.parametrize(("share", "taken"), [(1e-6, 0), (0.999999, 1)])
def test_one_document_cannot_be_split(tmp_path: Path, share: float, taken: int) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    message = refusal(tmp_path, Data(source="corpus.txt", held_out=share))
    assert f"takes {taken} of 1 documents" in message
    assert message.endswith("set it to 0, or split the files into more")


def test_a_given_tokenizer_is_used_whole_and_kept(base: Path) -> None:
    path = word_tokenizer(base / "tokenizer.json")
    corpus = prepare(DATA, 300, base, base / "cache", path, silent, eos="[end]")
    assert (corpus.vocabulary, corpus.eos) == (3, 0)
    assert corpus.tokenizer_file.read_bytes() == path.read_bytes()
    ids = np.concatenate([corpus.train.ids, corpus.held_out.ids])
    assert (ids == 1).sum() == sum(range(1, 31))  # the first word of every line: nothing is cut
    assert (ids == corpus.eos).sum() == 30  # nor padded


@pytest.mark.parametrize("token", ["[end]", {"content": "[end]", "special": True}])
def test_eos_comes_from_the_configuration_beside_the_tokenizer(base: Path, token: object) -> None:
    (base / "model").mkdir()
    word_tokenizer(base / "model" / "tokenizer.json")
    (base / "model" / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    assert prepare(DATA, 300, base, base / "cache", base / "model", silent).eos == 0


def test_a_large_vocabulary_takes_32_bits(base: Path) -> None:
    path = word_tokenizer(base / "tokenizer.json", 65_537)
    assert prepare(DATA, 300, base, base / "cache", path, silent, eos="[end]").train.ids.dtype == np.uint32


def test_a_tokenizer_without_eos_names_its_special_tokens(base: Path) -> None:
    path = word_tokenizer(base / "tokenizer.json")
    assert "no token <|endoftext|> to end a document with; its special tokens are: [end]" in refusal(base, DATA, path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"{}", "is no tokenizer.json"),
        (b"", "is no tokenizer.json"),
        (b"\xff", "not what a tokenizer"),
    ],
)
def test_what_is_no_tokenizer_is_refused(base: Path, content: bytes | None, said: str) -> None:
    path = base / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    assert said in refusal(base, DATA, path)


def test_a_tokenizer_is_trained_on_a_fixed_number_of_characters(base: Path) -> None:
    found = documents(DATA, base)
    sample = list(under_test._sample(found, 1000))
    assert sum(map(len, sample)) == 1000
    assert sample == list(under_test._sample(found[::-1], 1000))
    assert sorted(under_test._sample(found, 10**9)) == sorted(document.text for document in found)


def test_nothing_heavy_is_imported_to_open_a_corpus() -> None:
    script = (
        "import sys, samestep.data.source, samestep.data.tokenize, samestep.data.pack, samestep.data.order\n"
        "print({'torch', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
