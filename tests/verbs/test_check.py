import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from samestep.data.encode import Sequence
from samestep.data.survey import Found
from samestep.errors import DataError
from samestep.verbs.check import Check, as_dict, bars, check, lines, stretches, visible

CHATML = (
    "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s> {% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)


def chat(question: str, *answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}]
    return {"messages": turns + [{"role": "assistant", "content": text} for text in answer]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a recipe for chats and the files that it names, all but the chats."""
    words = {word: i for i, word in enumerate(["[other]", "<s>", "</s>", "user", "assistant", "one", "two", "three"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[other]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    (tmp_path / "words").mkdir()
    tokenizer.save(str(tmp_path / "words" / "tokenizer.json"))
    (tmp_path / "words" / "chat_template.jinja").write_text(CHATML)
    (tmp_path / "words" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    recipe = {
        "steps": 1,
        "data": {"source": "chats.jsonl", "tokenizer": "words", "context": 16, "held_out": 0},
        "objective": {"kind": "sft"},
        "run": {"cache": str(tmp_path / "cache")},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return tmp_path


def checked(base: Path, rows: list[Any], *overrides: str) -> Check:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (base / "chats.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return check(base / "recipe.yaml", overrides, lambda _: None)


def shown(found: Check) -> str:
    return "\n".join(lines(found))


def test_it_says_what_the_data_is_and_shows_the_trained_tokens(base: Path) -> None:
    found = checked(base, [chat("one", "two"), chat("two", "three"), chat("three", "one"), chat("one", "one")])
    text = shown(found)
    assert "chats.jsonl: messages, 4 samples, 0 of them held out" in text
    assert "32 tokens in 4 sequences, 8 trained" in text
    assert "<= 8         4 ####" in text
    assert text.count("--- sample") == 3
    assert "<s> user one </s> <s> assistant[[two </s>]]" in text
    assert text.endswith("a run would take it")


def test_invalid_samples_do_not_stop_it_and_are_listed(base: Path) -> None:
    found = checked(base, [chat("one", "two"), "{broken", chat("one"), {"text": "one"}])
    (one,) = found.sources
    assert one.samples == 1 and one.invalid.count == 3
    text = shown(found)
    for said in ("chats.jsonl:2:", "chats.jsonl:3: no assistant turn", "chats.jsonl:4: a text sample in a source that"):
        assert said in text
    assert "would be refused: chats.jsonl has 3 samples that cannot be used and data.invalid is fail" in text
    assert checked(base, [chat("one", "two"), "{broken"], "data.invalid=skip").refused == []


def test_what_is_wrong_is_counted_with_its_places(base: Path) -> None:
    long = chat("one " * 20, "two")
    rows = [chat("one", "two"), chat("one", "two"), chat("mail@host.org", "one"), long]
    found = checked(base, rows, "data.too_long=truncate")
    text = shown(found)
    assert "longer than the context of 16: 1 (data.too_long: truncate)" in text
    assert "without a trained token: 1" in text
    assert "duplicates: 1 (chats.jsonl:2 is chats.jsonl:1)" in text
    assert "e-mail address: 1 (chats.jsonl:3)" in text
    assert found.refused == []


def test_what_is_held_out_and_trained_on_is_found_across_sources(base: Path) -> None:
    rows = [chat("one", "two")] * 20
    (base / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = checked(base, rows, "data.source={chats.jsonl: 1, more.jsonl: 2}", "data.held_out=0.3")
    assert [one.source for one in found.sources] == ["chats.jsonl", "more.jsonl"]
    assert all(one.overlap.count == one.held_out > 0 for one in found.sources)
    assert shown(found).count("held out but also trained on: ") == 2


def test_a_corpus_without_a_tokenizer_is_checked_with_the_one_that_a_run_would_train(base: Path) -> None:
    (base / "text.txt").write_text("some words and more words\n" * 3000)
    found = checked(base, [], "data.tokenizer=null", "data.source=text.txt", "objective.kind=causal")
    (one,) = found.sources
    assert (one.format, one.too_long, found.refused) == ("text", 0, [])
    assert found.shown["text.txt"][0][0][0] is True


def test_a_source_without_a_sample_is_an_error(base: Path) -> None:
    with pytest.raises(DataError, match=r"holds no sample \(the first row: .*chats\.jsonl:1:1: not JSON"):
        checked(base, ["broken"])


def test_the_report_is_one_json_object(base: Path) -> None:
    found = json.loads(json.dumps(as_dict(checked(base, [chat("one", "two"), chat("one", "two")]))))
    assert found["refused"] == [] and found["context"] == 16
    assert found["sources"][0]["duplicates"] == {"count": 1, "places": ["chats.jsonl:2 is chats.jsonl:1"]}
    assert found["shown"]["chats.jsonl"][0][-1] == [True, "two </s>"]


def test_the_exit_code_is_3_where_a_run_would_be_refused(samestep: Any, base: Path) -> None:
    (base / "chats.jsonl").write_text(json.dumps(chat("one", "two")) + "\nbroken\n")
    refused = samestep("check", base / "recipe.yaml", "--json")
    assert refused.code == 3 and refused.json["sources"][0]["invalid"]["count"] == 1
    taken = samestep("check", base / "recipe.yaml", "data.invalid=skip")
    assert taken.code == 0 and "a run would take it" in taken.out and "\x1b" not in taken.out


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        (Sequence([1, 2, 3], None), [(True, "1 2 3")]),
        (Sequence([1, 2, 3], [False, True, True]), [(False, "1"), (True, "2 3")]),
        (Sequence(list(range(99)), [False] * 99), [(False, f"{' '.join(map(str, range(40)))} ... 59")]),
    ],
)
def test_a_sequence_is_cut_where_training_begins_and_long_stretches_lose_their_middle(
    sequence: Sequence, expected: list[tuple[bool, str]]
) -> None:
    found = list(stretches(sequence, lambda ids: " ".join(map(str, ids))))
    assert [mark for mark, _ in found] == [mark for mark, _ in expected]
    assert all(text.startswith(start) for (_, text), (_, start) in zip(found, expected, strict=True))


def test_bars_are_as_long_as_their_share() -> None:
    assert [bar.count("#") for bar in bars({8: 1, 16: 400, 32: 100})] == [1, 40, 10]


def test_nothing_in_the_data_can_command_the_terminal() -> None:
    assert visible("a\x1b[2Jb\tc\nd\x9bé☃") == "a\\x1b[2Jb\tc\nd\\x9bé☃"


def test_places_are_followed_by_dots_where_there_are_more() -> None:
    from samestep.verbs.check import _named

    assert _named(Found(2, ("a", "b"))) == "2 (a, b)" and _named(Found(9, ("a",))) == "9 (a, ...)"
