from pathlib import Path

import numpy as np
import pytest

from samestep.data.corpus import Corpus, Tokens
from samestep.data.rows import refuse_long, rows_of
from samestep.errors import DataError
from samestep.recipe.schema import Data

DATA = Data(context=8)


def tokens(*samples: tuple[int, ...], line: int = 1) -> Tokens:
    """Samples given by the lengths of their sequences, on lines that follow one another; line 0: a file each."""
    sizes = [size for sample in samples for size in sample]
    places = [(0, line + n) if line else (n, 0) for n, sample in enumerate(samples) for _ in sample]
    ids, ends = np.zeros(sum(sizes), np.uint16), np.cumsum(sizes, dtype=np.int64)
    return Tokens(ids, ends, None, np.array(places, np.int64).reshape(-1, 2))


def corpus(train: Tokens, held_out: Tokens) -> Corpus:
    files = ["chats.jsonl", "two.txt", "three.txt"]
    return Corpus(Path("c"), train, held_out, Path("t"), 10, 0, 0, 0, "messages", files, [], 0)


def refusal(train: Tokens, held_out: Tokens, objective: str) -> str:
    with pytest.raises(DataError) as caught:
        refuse_long(corpus(train, held_out), DATA, objective)
    return str(caught.value)


def test_the_first_long_sample_is_named_with_its_line_and_the_others_are_counted() -> None:
    assert refusal(tokens((9,), (1234,), (3,), (10,), line=5), tokens(), "sft") == (
        "chats.jsonl:6: a sample of 1,234 tokens, but data.context is 8 (too long: 2 of 4 samples); "
        "raise it, or set data.too_long to skip or truncate"
    )


def test_a_sample_that_is_a_whole_file_is_named_by_the_file() -> None:
    assert refusal(tokens((9,), (11,), line=0), tokens(), "sft").startswith("two.txt: a sample of 11 tokens, but")


def test_held_out_samples_are_refused_too() -> None:
    assert refusal(tokens((3,)), tokens((2,), (12,), line=8), "sft").startswith("chats.jsonl:9: a sample of 12 tokens")


def test_both_sequences_of_a_pair_count() -> None:
    said = refusal(tokens((5, 5), (6, 5), (9, 9)), tokens(), "dpo")
    assert said.startswith("chats.jsonl:2: a sample of 11 tokens, but data.context is 8 (too long: 2 of 3 samples)")
    refuse_long(corpus(tokens((5, 5)), tokens()), DATA, "dpo")
    assert refusal(tokens((5, 5)), tokens(), "reward").startswith("chats.jsonl:1: a sample of 10")  # reads all tokens


@pytest.mark.parametrize(
    ("data", "objective"),
    [
        (DATA, "causal"),
        (Data(context=8, too_long="skip"), "sft"),
        (Data(context=8, too_long="truncate"), "dpo"),
    ],
)
def test_nothing_is_refused_where_long_samples_are_cut_or_skipped(data: Data, objective: str) -> None:
    refuse_long(corpus(tokens((20, 20)), tokens()), data, objective)


def test_the_objective_says_how_rows_are_made() -> None:
    found = tokens((4,), (4,), (3,), (5,))
    stream, apart = rows_of(found, DATA, "causal"), rows_of(found, DATA, "sft")
    assert (stream.sequences, stream.lengths.tolist(), len(stream)) == (None, [8, 7], 2)
    assert apart.sequences is not None and sorted(apart.sequences.tolist()) == [0, 1, 2, 3]
    assert (apart.lengths.sum(), rows_of(found, Data(context=8, packing=False), "sft").pieces.tolist()) == (12, [1] * 4)


def test_pairs_and_scores_take_the_room_that_they_need() -> None:
    found = tokens((5, 5), (4, 4))
    assert rows_of(found, DATA, "dpo").lengths.tolist() == [4, 4, 3, 3]
    assert rows_of(found, DATA, "reward").lengths.tolist() == [4, 4]  # the other pair has 10 positions
