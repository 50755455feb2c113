import json
import signal
import subprocess
import sys
import tracemalloc
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import samestep.data.source as source_module
import samestep.data.tokenize as under_test
from samestep.data.corpus import Corpus, Tokens, load
from samestep.data.samples import groups
from samestep.data.source import is_held_out
from samestep.data.tokenize import prepare
from samestep.data.vocabulary import Vocabulary, trained
from samestep.errors import DataError
from samestep.recipe.schema import Data

ROOT = Path(under_test.__file__).parents[2]
DATA = Data(source="corpus", held_out=0.2)
CHATML = (
    "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


def silent(_: str) -> None: ...


def words(size: int = 1000) -> Vocabulary:
    """Whole words from w0 on, with a chat template. The file would cut every document to 2 tokens."""
    vocabulary = {"[end]": 0, "<s>": 1, "</s>": 2, "[other]": 3, "user": 4, "assistant": 5, "Document": 6}
    vocabulary |= {f"w{i}": i for i in range(7, size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[other]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[end]", "<s>", "</s>"])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    return Vocabulary(tokenizer.to_str(), "[end]", CHATML, {}, "folder")


def prepared(
    base: Path,
    source: str = "corpus",
    objective: str = "causal",
    vocabulary: Vocabulary | None = None,
    workers: int = 1,
    data: Data = DATA,
    train_on: str = "answers",
    **rest: Any,
) -> Corpus:
    return prepare(
        source, data, objective, train_on, vocabulary or words(), base / "cache", base, silent, workers, **rest
    )


def texts(base: Path, held_out: bool) -> list[str]:
    paths = sorted((base / "corpus").iterdir())
    return [path.read_text() for path in paths if is_held_out(path.name, 0.2) is held_out]


def written(base: Path, name: str, rows: list[Any]) -> str:
    (base / name).write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return name


def chat(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


def pair(i: int) -> dict[str, str]:
    return {"prompt": f"w{i} ", "chosen": "w7 w8", "rejected": "w9"}


def sequences(tokens: Tokens) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens.ids, tokens.ends[:-1])] if len(tokens.ends) else []


def refusal(base: Path, *arguments: Any, **rest: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepared(base, *arguments, **rest)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tokens_are_the_documents_each_followed_by_eos(base: Path) -> None:
    vocabulary = Vocabulary(trained(["corpus"], DATA, base, 300, base / "cache", silent))
    corpus = prepared(base, vocabulary=vocabulary)
    tokenizer = Tokenizer.from_str(vocabulary.text)
    for tokens, held_out in ((corpus.train, False), (corpus.held_out, True)):
        assert [tokenizer.decode(ids[:-1]) for ids in sequences(tokens)] == texts(base, held_out)
        assert (tokens.ids[tokens.ends - 1] == corpus.eos).all()
        assert tokens.trained is None
    assert (corpus.vocabulary, corpus.eos, corpus.format) == (300, tokenizer.token_to_id("<|endoftext|>"), "text")
    assert corpus.tokenizer_file.read_text("utf-8") == vocabulary.text


def test_the_sizes_of_the_held_out_texts_are_known(base: Path) -> None:
    text = "".join(texts(base, True)).encode()
    corpus = prepared(base)
    assert (corpus.held_out_bytes, corpus.held_out_zlib) == (len(text), len(zlib.compress(text, 9)))


@pytest.mark.parametrize("source", ["corpus", "chats.jsonl"])
def test_every_byte_is_the_same_for_any_number_of_workers(
    base: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    written(base, "chats.jsonl", [chat(f"w{i}", f"w{i + 1} w{i}") for i in range(200)])
    monkeypatch.setattr(under_test, "groups", partial(groups, size=1))  # every chunk is a portion of its own
    folders = []
    for workers in (1, 2, 3):
        made = prepare(source, DATA, "sft", "answers", words(), base / str(workers), base, silent, workers)
        folders.append({path.name: path.read_bytes() for path in made.folder.iterdir()})
    assert folders[0] == folders[1] == folders[2]


def test_of_chats_the_answers_are_trained_and_no_eos_is_added(base: Path) -> None:
    written(base, "chats.jsonl", [chat("w10 w11", "w12", "w13", "w14 w15")])
    data = Data(held_out=0)
    corpus = prepared(base, "chats.jsonl", "sft", data=data)
    assert corpus.train.ids.tolist() == [1, 4, 10, 11, 2, 1, 5, 12, 2, 1, 4, 13, 2, 1, 5, 14, 15, 2]
    assert corpus.train.trained is not None
    assert corpus.train.ids[corpus.train.trained].tolist() == [12, 2, 14, 15, 2]
    every = prepared(base, "chats.jsonl", "sft", data=data, train_on="all").train.trained
    assert every is not None and every.all()


def test_a_pair_is_two_sequences_on_one_side(base: Path) -> None:
    source = written(base, "pairs.jsonl", [pair(i) for i in range(20, 60)])
    corpus = prepared(base, source, "dpo")
    for tokens in (corpus.train, corpus.held_out):
        found = sequences(tokens)
        assert found and all(
            chosen == [rejected[0], 7, 8, 0] and rejected[1:] == [9, 0]
            for chosen, rejected in zip(found[::2], found[1::2], strict=True)
        )
    assert len(corpus.train.ends) + len(corpus.held_out.ends) == 80


def test_each_sequence_knows_its_file_and_line(base: Path) -> None:
    (base / "rows").mkdir()
    for name, rows in (("a.jsonl", [chat("w1", "w2"), "\n", chat("w3", "w4")]), ("b.jsonl", [chat("w5", "w6")])):
        written(base / "rows", name, rows)
    corpus = prepared(base, "rows", "sft", data=Data(held_out=0))
    assert corpus.files == ["a.jsonl", "b.jsonl"]
    assert corpus.train.places.tolist() == [[0, 1], [0, 3], [1, 1]]
    assert prepared(base).train.places[:, 1].tolist() == [0] * len(texts(base, False))


def test_the_lines_of_one_text_file_are_known_by_their_first(base: Path) -> None:
    (base / "big.txt").write_text("w10 w11 w12\n" * 2000)
    corpus = prepared(base, "big.txt", data=Data(held_out=0))
    assert corpus.files == ["big.txt"]
    assert corpus.train.places[:2].tolist() == [[0, 1], [0, 684]]


BAD = {
    "broken JSON": ('{"text": \n', r":3:\d+: not JSON"),
    "a wrong type": ({"text": 5}, r":3: .*must be text, it is of type int"),
    "another format": (chat("w1", "w2"), r":3: a messages sample in a source that begins with a text sample \(.*:1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sample_is_refused_with_its_line_or_left_out_and_listed(base: Path, case: str) -> None:
    bad, said = BAD[case]
    source = written(base, "rows.jsonl", [{"text": "w7"}, {"text": ""}, bad, {"text": "w8"}, bad])
    with pytest.raises(DataError, match=f"rows.jsonl{said}.*; set data.invalid=skip to leave such samples out"):
        prepared(base, source, data=Data(held_out=0))
    assert list((base / "cache").iterdir()) == []
    corpus = prepared(base, source, data=Data(held_out=0, invalid="skip"))
    assert sequences(corpus.train) == [[7, 0], [8, 0]]
    assert corpus.skipped_count == 2 and [line.split(":")[1] for line in corpus.skipped] == ["3", "5"]


def test_what_the_encoder_refuses_is_left_out_too(base: Path) -> None:
    rows = [chat("w7", "w8"), {"messages": [{"role": "user", "content": "w9"}]}]
    source = written(base, "rows.jsonl", rows)
    assert "rows.jsonl:2: no assistant turn" in refusal(base, source, "sft", data=Data(held_out=0))
    assert prepared(base, source, "sft", data=Data(held_out=0, invalid="skip")).skipped_count == 1


def test_only_the_first_sentences_are_kept(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "SENTENCES", 3)
    (base / "rows").mkdir()
    for name, bad in (("a.jsonl", 2), ("b.jsonl", 9)):
        written(base / "rows", name, [{"text": "w7"}, *["no\n"] * bad])
    corpus = prepared(base, "rows", data=Data(held_out=0, invalid="skip"))
    assert [Path(line.split(":")[0]).name for line in corpus.skipped] == ["a.jsonl", "a.jsonl", "b.jsonl"]
    assert corpus.skipped_count == 11


@pytest.mark.parametrize(
    ("row", "objective", "said"),
    [
        (
            chat("w1", "w2"),
            "causal",
            "holds messages samples, but objective.kind causal learns from text; set objective",
        ),
        (chat("w1", "w2"), "dpo", "but objective.kind dpo learns from preference; set objective.kind=sft, or name"),
        (pair(7), "sft", "holds preference samples, but .* text or prompt_completion or messages; .*=dpo or reward"),
        ({"text": "w7"}, "reward", "holds text samples, but .*; set objective.kind=causal or sft"),
    ],
)
def test_an_objective_that_cannot_learn_from_the_samples_says_what_can(
    base: Path, row: Any, objective: str, said: str
) -> None:
    source = written(base, "rows.jsonl", [row] * 2)
    with pytest.raises(DataError, match=said):
        prepared(base, source, objective, data=Data(held_out=0))
    able = "dpo" if "chosen" in row else "sft"
    prepared(base, source, able, data=Data(held_out=0))
    with pytest.raises(DataError, match=said):  # now that it is in the cache
        prepared(base, source, objective, data=Data(held_out=0))


def test_chats_without_a_template_are_refused(base: Path) -> None:
    source = written(base, "chats.jsonl", [chat("w1", "w2")])
    bare = Vocabulary(words().text, "[end]", origin="models/bare")
    assert "models/bare has no chat template" in refusal(base, source, "sft", bare)


def test_a_second_start_reads_the_cache_and_says_nothing(base: Path) -> None:
    said: list[str] = []
    first = prepare("corpus", DATA, "causal", "answers", words(), base / "cache", base, said.append, 1)
    assert said == ["encoding corpus: text"]
    second = prepare("corpus", DATA, "causal", "answers", words(), base / "cache", base, said.append, 1)
    assert said == said[:1] and second.folder == first.folder
    np.testing.assert_array_equal(load(first.folder).train.ids, first.train.ids)


def test_whatever_changes_the_tokens_changes_the_folder(base: Path) -> None:
    written(base, "rows.jsonl", [{"text": "w7", "body": "w8"}, {"text": "w9", "body": "w8"}])
    own = Data(held_out=0)
    folders = [
        prepared(base).folder,
        prepared(base, data=Data(held_out=0.5)).folder,
        prepared(base, data=DATA.model_copy(update={"invalid": "skip"})).folder,
        prepared(base, train_on="all").folder,
        prepared(base, vocabulary=words(1001)).folder,
        prepared(base, vocabulary=Vocabulary(words().text, "Document", CHATML)).folder,
        prepared(base, vocabulary=Vocabulary(words().text, "[end]", None)).folder,
        prepared(base, vocabulary=Vocabulary(words().text, "[end]", CHATML, {"bos_token": "<s>"})).folder,
        prepared(base, "rows.jsonl", data=own).folder,
        prepared(base, "rows.jsonl", data=own.model_copy(update={"text_field": "body"})).folder,
    ]
    (base / "corpus" / "00.txt").write_text("changed")
    folders.append(prepared(base).folder)
    assert len(set(folders)) == len(folders)
    assert prepared(base, data=DATA.model_copy(update={"context": 64, "packing": False})).folder == folders[-1]


def test_progress_counts_the_bytes_that_are_done(base: Path) -> None:
    done: list[int] = []
    prepared(base, progress=done.append)
    assert done == sorted(done) and done[-1] == sum(path.stat().st_size for path in (base / "corpus").iterdir())


def test_memory_does_not_grow_with_the_source(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "BLOCK", 1 << 14)
    monkeypatch.setattr(under_test, "groups", partial(groups, size=1))
    rows = [chat(f"w{i} " * 100, "w7 " * 50) for i in range(100)]
    prepared(base, written(base, "warm.jsonl", rows[:9]), "sft")  # imports and caches
    peaks = []
    for times in (4, 16):
        name = written(base, f"{times}.jsonl", rows * times)
        tracemalloc.start()
        prepared(base, name, "sft")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.25 * peaks[0]  # what is kept of each sample would double it


@pytest.mark.parametrize("moment", ["encoding", "progress", "publish"])
def test_a_kill_leaves_no_folder_that_counts_as_whole(base: Path, moment: str) -> None:
    script = (
        "import os, sys; from pathlib import Path; from samestep.data import cache, tokenize as t, vocabulary as v\n"
        "base, data = Path(sys.argv[1]), t.Data(held_out=0.2)\n"
        "def say(line):\n"
        "    if line.startswith(sys.argv[2]): os.kill(os.getpid(), 9)\n"
        "publish = cache._publish\n"
        "words = v.Vocabulary(v.trained(['corpus'], data, base, 300, base / 'other', say))\n"
        "cache._publish = lambda *paths: (say('publish'), publish(*paths))\n"
        "args = ('corpus', data, 'causal', 'answers', words, base / 'cache', base, say, 1)\n"
        "t.prepare(*args, progress=lambda done: say('progress'))"
    )
    done = subprocess.run([sys.executable, "-c", script, base, moment], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    left = list((base / "cache").iterdir()) if (base / "cache").exists() else []
    assert all(path.name.startswith("part-") for path in left) and len(left) == (moment != "encoding")
    assert prepared(base).vocabulary == 1000


def test_an_error_leaves_no_temporary_folder(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(under_test, "write_meta", full)
    assert "No space left on device; set run.cache to a folder with room" in refusal(base)
    assert list((base / "cache").iterdir()) == []


def test_nothing_held_out_is_an_empty_part(base: Path) -> None:
    corpus = prepared(base, data=Data(held_out=0))
    assert (len(corpus.held_out.ids), len(corpus.held_out.ends), corpus.held_out_bytes) == (0, 0, 0)
    assert len(corpus.train.ends) == 30


def test_a_share_that_holds_nothing_out_says_which_one_would(base: Path) -> None:
    message = refusal(base, data=Data(held_out=1e-6))
    assert "takes 0 of 30 documents of corpus" in message
    share = float(message.split("set it to ")[1].split(",")[0])
    assert len(prepared(base, data=Data(held_out=share)).held_out.ends) == 1


@pytest.mark.parametrize(("share", "taken"), [(1e-6, 0), (0.999999, 1)])
def test_one_document_cannot_be_split(tmp_path: Path, share: float, taken: int) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    message = refusal(tmp_path, "corpus.txt", data=Data(held_out=share))
    assert f"takes {taken} of 1 documents" in message
    assert message.endswith("set it to 0, or split the files into more")


def test_a_given_tokenizer_is_used_whole(base: Path) -> None:
    corpus = prepared(base)
    assert (corpus.vocabulary, corpus.eos) == (1000, 0)
    ids = np.concatenate([corpus.train.ids, corpus.held_out.ids])
    assert (ids == 6).sum() == sum(range(1, 31))  # the first word of every line: nothing is cut
    assert (ids == corpus.eos).sum() == 30  # nor padded


def test_a_large_vocabulary_takes_32_bits(base: Path) -> None:
    assert prepared(base, vocabulary=words(65_536)).train.ids.dtype == np.uint16
    assert prepared(base, vocabulary=words(65_537)).train.ids.dtype == np.uint32


def test_nothing_heavy_is_imported_to_open_a_corpus() -> None:
    script = (
        "import sys, samestep.data.source, samestep.data.tokenize, samestep.data.pack, samestep.data.order\n"
        "print({'torch', 'transformers', 'tokenizers', 'pyarrow', 'jinja2', 'fsspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
