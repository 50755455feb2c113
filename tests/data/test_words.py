import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from samestep.data import words
from samestep.data.words import GPT2, Words, ascii_pattern, word_pattern

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LEARNT_FROM = ["it's a test of the words, we'll see: 1234 things\n\n  and don't\r\n x+=1;  naïve ☃ IT'S aéa aé"] * 3


def split(pattern: str) -> Any:
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def made(pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>", "<|end|>x", "<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LEARNT_FROM, trainer)
    return tokenizer


TOKENIZERS = {
    "gpt2": made(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama3": made(split(LLAMA3)),
    "with gaps": made(split(r"\p{L}+|\p{N}+")),
}
PIECES = ["a", "T", "it", "'s", "'LL", " ", "\n", "\r\n", "\t", "\x0b", "\x1c", "\x00", "7", "!", "<"]
TEXTS = st.lists(st.sampled_from([*PIECES, "|end|>x", "<|end|>", "é", "☃"])).map("".join)


def library(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


@pytest.mark.parametrize("name", TOKENIZERS)
@example(text="a<|end|>x<|end|><s>")
@example(text="aéa aé<s>aé")
@given(text=TEXTS | st.text(st.characters(max_codepoint=127)) | st.text())
def test_ids_and_offsets_are_those_of_the_library(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    table = Words(tokenizer)
    assert table.encode(text) == library(tokenizer, text)
    assert table.encode(text + text) == library(tokenizer, text + text)  # now that the words are known


@pytest.mark.parametrize("name", TOKENIZERS)
def test_all_pairs_of_ascii_characters_are_cut_as_the_library_does(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    table = Words(tokenizer)
    for pair in itertools.product(map(chr, range(128)), repeat=2):
        text = "a".join([*pair, "".join(pair), ""])
        assert table.encode(text) == library(tokenizer, text)


def test_these_tokenizers_have_a_table() -> None:
    for tokenizer in TOKENIZERS.values():
        table = Words(tokenizer)
        table.encode("it's")
        assert table._known


def test_the_table_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "KNOWN", 3)
    monkeypatch.setattr(words, "LONGEST", 5)
    table = Words(TOKENIZERS["gpt2"])
    text = "testing a b c d"
    assert table.encode(text) == library(TOKENIZERS["gpt2"], text)
    assert list(table._known) == [" a", " b", " c"]


def normalized() -> Tokenizer:
    tokenizer = made(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def with_token(**flags: bool) -> Tokenizer:
    tokenizer = made(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_tokens([AddedToken("<tool>", **flags)])
    return tokenizer


def forgetful() -> Tokenizer:
    described = json.loads(TOKENIZERS["gpt2"].to_str())
    described["model"]["dropout"] = 0.1
    return Tokenizer.from_str(json.dumps(described))


UNCERTAIN = {
    "a normalizer": normalized,
    "dropout": forgetful,
    "a prefix": lambda: made(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "no bytes": lambda: made(pre_tokenizers.Whitespace()),
    "merged words": lambda: made(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\s"), "merged_with_next"), pre_tokenizers.ByteLevel(False, False)]
        )
    ),
    "a token that takes spaces": lambda: with_token(lstrip=True, normalized=False),
    "a token of the normalized text": lambda: with_token(normalized=True),
    "a token that must stand alone": lambda: with_token(single_word=True, normalized=False),
}


@pytest.mark.parametrize("case", UNCERTAIN)
def test_where_words_may_not_be_all_the_library_is_asked(case: str) -> None:
    tokenizer = UNCERTAIN[case]()
    assert word_pattern(json.loads(tokenizer.to_str())) is None
    text = "It's <tool> x<|end|> <tool>s"
    assert case == "dropout" or Words(tokenizer).encode(text) == library(tokenizer, text)


def test_nfc_leaves_ascii_as_it_is() -> None:
    tokenizer = made(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.normalizer = normalizers.NFC()
    for text in ("it's", "e\u0301 it's<|end|>e\u0301"):
        assert Words(tokenizer).encode(text) == library(tokenizer, text)


@pytest.mark.parametrize("written", [GPT2, LLAMA3])
def test_known_expressions_are_translated(written: str) -> None:
    assert ascii_pattern(written) is not None


@pytest.mark.parametrize("written", [r"\p{Lu}", r".", r"^a", r"a{2}+", r"(a)", r"\w", r"[a[b]]", r"(?<=a)", "$"])
def test_an_expression_that_may_mean_something_else_is_not(written: str) -> None:
    assert ascii_pattern(written) is None
