"""Prepared corpora of known tokens, and a line to the engine that remembers what it was told."""

from contextlib import ExitStack

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from samestep.data.corpus import Block, Part, write_meta

WORDS = ["[end]", "<s>", "user", "assistant", *(f"w{i}" for i in range(4, 50))]


class Told:
    """In the place of Control: events and phases of one replica, in their order."""

    def __init__(self):
        self.events, self.phases = [], []

    def send(self, event):
        self.events.append(event)

    def phase(self, step, phase):
        self.phases.append((step, phase.name))

    def of(self, kind):
        return [event for event in self.events if event["event"] == kind]


@pytest.fixture
def told():
    return Told


@pytest.fixture
def write_corpus(tmp_path):
    """(name, format, lengths of the training sequences, of the held-out ones) -> a prepared folder.

    Every sequence counts on from w4; its first token is not trained, but for texts.
    """
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[end]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def write(name, format, train, held_out):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        with ExitStack() as files:
            for part, lengths in (("train", train), ("held_out", held_out)):
                Part(folder, part, np.uint16, format != "text", files).append(block(lengths), 0)
        told = {"vocabulary": len(WORDS), "eos": 0, "held_out_bytes": 100, "held_out_zlib": 50, "format": format}
        write_meta(folder, tokenizer.to_str(), **told, files=["data.jsonl"], skipped=[], skipped_count=0)
        return folder

    return write


def block(lengths):
    ids = np.concatenate([np.zeros(0, np.uint16), *(4 + np.arange(size, dtype=np.uint16) for size in lengths)])
    trained = np.concatenate([np.zeros(0, bool), *(np.arange(size) > 0 for size in lengths)])
    return Block(ids, np.array(lengths, np.int64), trained, np.arange(len(lengths)) + 1, len(lengths))
