"""The tokenizer: read from a model's folder, or a byte-level BPE trained on the corpus itself."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from samestep.data.cache import key, published
from samestep.data.encode import id_of, parsed
from samestep.data.samples import first_sample, plain, read_samples, refusal, same_format
from samestep.data.source import Invalid, chunks, fingerprint, is_held_out, position
from samestep.data.template import load
from samestep.errors import DataError
from samestep.recipe.schema import Data

END = "<|endoftext|>"
FORMAT = 1  # raise it when another tokenizer would come out: old caches are then left alone
SAMPLE = 32_000_000  # characters that a tokenizer is trained on at most; 11 million take 2 s on 2 cores


@dataclass(frozen=True)
class Vocabulary:
    """text: of a tokenizer.json. eos: the token that ends a document. special: bos_token, eos_token and the like.
    template: the chat template, None where there is none. origin: what errors name.
    """

    text: str
    eos: str = END
    template: str | None = None
    special: dict[str, str] = field(default_factory=dict)
    origin: str = "the tokenizer trained on the corpus"


def given(path: Path, eos: str | None = None) -> Vocabulary:
    """The tokenizer.json at or in `path`, with the eos token and the chat template that the files beside it name.

    eos: goes before the one of the files; without either it is `<|endoftext|>`. Raises DataError for what cannot be
    read.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    template, special = load(file.parent)
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; name a tokenizer.json or a folder with one") from error
    except ValueError as error:
        raise DataError(f"{file} is not what a tokenizer writes ({error}); save it anew") from error
    return Vocabulary(text, eos or special.get("eos_token") or END, template, special, str(file))


def parse(vocabulary: Vocabulary) -> tuple[int, int]:
    """One more than the largest token id, and the id of eos. Raises DataError for what is no tokenizer or lacks eos."""
    tokenizer = parsed(vocabulary.text, f"{vocabulary.origin} is no tokenizer.json")
    eos = id_of(tokenizer, vocabulary.eos, vocabulary.origin, "a document")
    return max(tokenizer.get_vocab().values()) + 1, eos


def trained(
    sources: Sequence[str], data: Data, base: Path, vocabulary: int, cache: Path, say: Callable[[str], None]
) -> str:
    """The tokenizer.json of a byte-level BPE of at most `vocabulary` tokens, from `cache` where it is there already.

    It is trained on the training samples (Sennrich et al. 2016; bytes as in Radford et al. 2019, section 2.2); on more
    than SAMPLE characters, on the first ones in the order of `position`. Raises DataError as the sources do.
    """
    prints = [fingerprint(source, data, base) for source in sources]
    settings = (data.held_out, data.text_field, data.format, vocabulary, *prints)
    folder = cache / key(["vocabulary", FORMAT, version("tokenizers"), *settings])
    if not folder.is_dir():
        texts = (pair for source in sources for pair in _training_texts(source, data, base))
        with published(folder) as fresh:
            (fresh / "tokenizer.json").write_text(_train(first_texts(texts, SAMPLE), vocabulary, say), "utf-8")
    try:
        return (folder / "tokenizer.json").read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no whole tokenizer ({error}); delete it and start again") from error


def first_texts(texts: Iterable[tuple[float, str]], characters: int) -> list[str]:
    """Of texts with their positions, the first `characters` in the order of the positions; ties as they come.

    Never holds more than they, one text more and one that is cut.
    """
    kept: list[tuple[float, int, str]] = []  # a heap whose first entry is the last in order
    held = 0
    for number, (place, text) in enumerate(texts):
        heapq.heappush(kept, (-place, -number, text))
        held += len(text)
        while held - len(kept[0][2]) >= characters:
            held -= len(heapq.heappop(kept)[2])
    ordered = [text for _, _, text in sorted(kept, key=lambda entry: entry[:2], reverse=True)]
    if held > characters:
        ordered[-1] = ordered[-1][: len(ordered[-1]) - (held - characters)]
    return ordered


def _training_texts(source: str, data: Data, base: Path) -> Iterator[tuple[float, str]]:
    first = first_sample(source, data, base)
    for chunk in chunks(source, data, base):
        for row, sample in read_samples(chunk, data):
            judged = same_format(sample, first)
            if isinstance(judged, Invalid):
                if data.invalid == "fail":
                    raise refusal(judged.message)
            elif not is_held_out(row.name, data.held_out):
                yield position(row.name), plain(judged)


def _train(texts: list[str], vocabulary: int, say: Callable[[str], None]) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    say(f"training a tokenizer of {vocabulary:,} tokens")
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        say(f"the corpus is too small for {vocabulary:,} tokens; the tokenizer has {tokenizer.get_vocab_size():,}")
    return str(tokenizer.to_str(pretty=True))
