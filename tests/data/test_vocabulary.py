import json
import random
from pathlib import Path

import pytest
from hypothesis import given as over
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

import samestep.data.vocabulary as under_test
from samestep.data.source import is_held_out, position
from samestep.data.vocabulary import END, Vocabulary, first_texts, given, parse, trained
from samestep.errors import DataError
from samestep.recipe.schema import Data

DATA = Data(source="corpus", held_out=0.2)


def silent(_: str) -> None: ...


def learnt(base: Path, size: int = 300, data: Data = DATA, sources: tuple[str, ...] = ("corpus",)) -> str:
    return trained(sources, data, base, size, base / "cache", silent)


def folder_of(base: Path, **config: object) -> Path:
    folder = base / "model"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"[end]": 0, "Document": 1, "[other]": 2}, unk_token="[other]"))
    tokenizer.add_special_tokens(["[end]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_any_text_survives_the_trained_tokenizer(base: Path) -> None:
    tokenizer = Tokenizer.from_str(learnt(base))
    text = "\x00 \x7fé中\U0001f600\r\n\t  end "
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert parse(Vocabulary(learnt(base))) == (300, tokenizer.token_to_id(END))


def test_the_vocabulary_is_the_one_asked_for_or_what_the_corpus_gives(base: Path) -> None:
    said: list[str] = []
    small = Tokenizer.from_str(trained(["corpus"], DATA, base, 4096, base / "cache", said.append)).get_vocab_size()
    assert 300 < small < 4096
    assert f"the corpus is too small for 4,096 tokens; the tokenizer has {small}" in said


def test_the_tokenizer_never_sees_a_held_out_document(base: Path) -> None:
    before = learnt(base)
    for path in (base / "corpus").iterdir():
        if is_held_out(path.name, 0.2):
            path.write_text("something else entirely " * 50)
    assert learnt(base) == before


def test_a_second_start_reads_the_cache_and_says_nothing(base: Path) -> None:
    said: list[str] = []
    first = learnt(base)
    assert trained(["corpus"], DATA, base, 300, base / "cache", said.append) == first
    assert said == []
    (file,) = (base / "cache").glob("*/tokenizer.json")
    file.unlink()
    with pytest.raises(DataError, match=r"holds no whole tokenizer .* delete it"):
        learnt(base)


def test_whatever_changes_the_tokenizer_is_another_one_in_the_cache(base: Path) -> None:
    learnt(base)
    learnt(base, 301)
    learnt(base, data=Data(source="corpus", held_out=0.5))
    learnt(base, sources=("corpus", "corpus/00.txt"))
    (base / "corpus" / "00.txt").write_text("changed")
    learnt(base)
    assert len(list((base / "cache").iterdir())) == 5
    learnt(base, data=DATA.model_copy(update={"context": 64, "invalid": "skip"}))
    assert len(list((base / "cache").iterdir())) == 5


def test_chats_and_pairs_are_learnt_from_by_their_contents(base: Path) -> None:
    row = {"messages": [{"role": "user", "content": "zyx zyx"}, {"role": "assistant", "content": "wvu wvu"}]}
    (base / "chats.jsonl").write_text((json.dumps(row) + "\n") * 20)
    vocabulary = Tokenizer.from_str(learnt(base, sources=("chats.jsonl",))).get_vocab()
    assert {"zyx", "wvu"} <= {token.strip("Ġ") for token in vocabulary}
    assert "content" not in vocabulary


def test_an_invalid_sample_is_refused_or_left_out_as_the_recipe_says(base: Path) -> None:
    (base / "rows.jsonl").write_text('{"text": "fine"}\n{"text": 5}\n{"text": "fine too"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2: .*; set data.invalid=skip"):
        learnt(base, sources=("rows.jsonl",))
    assert learnt(base, sources=("rows.jsonl",), data=Data(invalid="skip", held_out=0))
    assert len(list((base / "cache").iterdir())) == 1


@over(st.lists(st.text(min_size=1, max_size=6), max_size=20), st.integers(1, 60), st.randoms())
def test_the_first_characters_in_the_order_of_the_positions(
    texts: list[str], count: int, shuffle: random.Random
) -> None:
    pairs = [(position(str(i)), text) for i, text in enumerate(texts)]
    expected = "".join(text for _, text in sorted(pairs))[:count]
    found = first_texts(pairs, count)
    assert "".join(found) == expected and all(found)
    shuffle.shuffle(pairs)
    assert first_texts(pairs, count) == found


def test_texts_of_one_position_stay_as_they_come() -> None:
    assert first_texts([(0.5, "b"), (0.5, "a"), (0.1, "c")], 10) == ["c", "b", "a"]


def test_no_more_than_the_first_characters_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    def push(heap: list[tuple[float, int, str]], item: tuple[float, int, str]) -> None:
        nonlocal most
        heap.append(item)
        heap.sort()
        most = max(most, len(heap))

    monkeypatch.setattr(under_test.heapq, "heappush", push)
    assert len(first_texts(((position(str(i)), "ten chars.") for i in range(1000)), 100)) == 10
    assert most == 11


def test_a_folder_gives_its_eos_template_and_special_tokens(base: Path) -> None:
    folder = folder_of(base, eos_token="[end]", bos_token={"content": "<s>"}, chat_template="{{ messages }}")
    found = given(folder)
    assert (found.eos, found.template) == ("[end]", "{{ messages }}")
    assert found.special == {"eos_token": "[end]", "bos_token": "<s>"}
    assert given(folder / "tokenizer.json") == found
    assert given(folder, "Document").eos == "Document"
    assert parse(found) == (3, 0)


def test_a_tokenizer_without_eos_names_its_special_tokens(base: Path) -> None:
    with pytest.raises(DataError, match=r"no token <\|endoftext\|> to end a document with; its special .*: \[end\]"):
        parse(given(folder_of(base)))


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"{}", "is no tokenizer.json"), (b"", "is no tokenizer.json"), (b"\xff", "not what a")],
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        parse(given(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
