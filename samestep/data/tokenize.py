"""Documents to token ids, once: into a folder named by all that goes in, from which every replica maps them.

<cache>/<sha256>/   train.ids.npy train.ends.npy held_out.ids.npy held_out.ends.npy tokenizer.json meta.json
"""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from samestep.data.source import Document, documents, fingerprint, is_held_out, position
from samestep.errors import DataError
from samestep.recipe.schema import Data

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
FORMAT = 1  # raise it when other files or other tokens are written: old caches are then left alone
SAMPLE = 32_000_000  # characters that a tokenizer is trained on at most; 11 million take 2 s on 2 cores
BATCH = 1_000_000  # characters encoded at once; an encoding takes some 100 times the memory of its ids
LEFTOVER = 86_400.0  # seconds after which an unfinished folder counts as left by a kill


@dataclass(frozen=True, eq=False)
class Tokens:
    """All documents one after the other, each followed by eos.

    ids: uint16[n], or uint32[n] for a vocabulary over 65,536; mapped, read only.
    ends: int64[documents], the index in `ids` after each document's eos; mapped, read only.
    """

    ids: NDArray[np.uint16] | NDArray[np.uint32]
    ends: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Corpus:
    folder: Path
    train: Tokens
    held_out: Tokens
    tokenizer_file: Path
    vocabulary: int  # every id is below it
    eos: int
    held_out_bytes: int  # UTF-8 bytes of the held-out texts
    held_out_zlib: int  # bytes that zlib, level 9, needs for these texts as one stream


def prepare(
    data: Data,
    vocabulary: int,
    base: Path,
    cache: Path,
    tokenizer_file: Path | None,
    say: Callable[[str], None],
    *,
    eos: str | None = None,
) -> Corpus:
    """The tokens of `data.source`, from the folder `cache` where they are there already.

    Without `tokenizer_file`, a byte-level BPE of at most `vocabulary` tokens is trained on the training documents
    (Sennrich et al. 2016; bytes as in Radford et al. 2019, section 2.2); on more than SAMPLE characters, on the
    first ones in the order of `position`. With it (a tokenizer.json or the folder of one), `eos` names the token
    that ends a document; by default that of the tokenizer_config.json beside it, else `<|endoftext|>`.
    A text that spells a special token gets that token, as in transformers.

    Killed at any moment it leaves no folder that counts as whole; several jobs may prepare the same corpus at once.
    Raises DataError for a corpus or tokenizer that cannot be used and a cache that cannot be written.
    """
    found = documents(data, base)
    parts = _split(found, data.held_out)
    given, own_eos = _given(tokenizer_file) if tokenizer_file is not None else (None, None)
    end = eos or own_eos or END
    wanted = vocabulary if given is None else given
    settings = [FORMAT, version("tokenizers"), fingerprint(found), data.held_out, wanted, end]
    folder = cache / hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    if not folder.is_dir():
        tokenizer = _trained(parts["train"], vocabulary, say) if given is None else _parsed(given, tokenizer_file)
        text = given or tokenizer.to_str(pretty=True)
        try:
            _build(folder, parts, tokenizer, text, _eos(tokenizer, end, tokenizer_file), say)
        except OSError as error:
            raise DataError(f"cannot write {folder}: {error.strerror}; set run.cache to a folder with room") from error
    return load(folder)


def load(folder: Path) -> Corpus:
    """Opens a prepared folder, `Corpus.folder`. Raises DataError where it is not whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return Corpus(folder, _mapped(folder, "train"), _mapped(folder, "held_out"), folder / "tokenizer.json", **meta)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"{folder} is no whole prepared corpus ({error}); delete it and start again") from error


def _mapped(folder: Path, name: str) -> Tokens:
    ids, ends = (np.load(folder / f"{name}.{part}.npy", mmap_mode="r", allow_pickle=False) for part in ("ids", "ends"))
    return Tokens(ids, ends)


def _split(found: list[Document], share: float) -> dict[str, list[Document]]:
    """The training and the held-out documents, whole ones, by their names."""
    parts: dict[str, list[Document]] = {"train": [], "held_out": []}
    for document in found:
        parts["held_out" if is_held_out(document.name, share) else "train"].append(document)
    if share and not all(parts.values()):
        first = min(position(document.name) for document in found)
        enough = f"to {first + 0.001:.3f}, which takes one, or " if len(found) > 1 and not parts["held_out"] else ""
        raise DataError(
            f"data.held_out {share} takes {len(parts['held_out'])} of {len(found)} documents (chosen by their names), "
            f"but training and the held-out set need one each; set it {enough}to 0, or split the files into more"
        )
    return parts


def _given(path: Path) -> tuple[str, str | None]:
    """The tokenizer.json at or in `path` and the eos token that the tokenizer_config.json beside it names."""
    file = path / "tokenizer.json" if path.is_dir() else path
    beside = file.parent / "tokenizer_config.json"
    try:
        config = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
        token = config.get("eos_token")
        return file.read_text("utf-8"), token["content"] if isinstance(token, dict) else token
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; name a tokenizer.json or a folder with one") from error
    except (ValueError, AttributeError, KeyError) as error:
        raise DataError(f"{file} or {beside.name} is not what a tokenizer writes ({error}); save it anew") from error


def _parsed(text: str, path: Path | None) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"{path} is no tokenizer.json ({error}); save it anew with the tokenizers library") from error
    tokenizer.no_truncation()  # both are often left in the file and would cut or pad documents
    tokenizer.no_padding()
    return tokenizer


def _trained(training: list[Document], vocabulary: int, say: Callable[[str], None]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    say(f"training a tokenizer of {vocabulary:,} tokens")
    tokenizer.train_from_iterator(_sample(training, SAMPLE), trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        say(f"the corpus is too small for {vocabulary:,} tokens; the tokenizer has {tokenizer.get_vocab_size():,}")
    return tokenizer


def _sample(training: list[Document], characters: int) -> Iterator[str]:
    left = characters
    for document in sorted(training, key=lambda document: position(document.name)):
        if left <= 0:
            return
        yield document.text[:left]
        left -= len(document.text)


def _eos(tokenizer: "Tokenizer", token: str, path: Path | None) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        special = ", ".join(t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special) or "none"
        raise DataError(
            f"{path or 'the trained tokenizer'}: no token {token} to end a document with; "
            f"its special tokens are: {special}"
        )
    return int(found)


def _build(
    folder: Path,
    parts: dict[str, list[Document]],
    tokenizer: "Tokenizer",
    text: str,
    eos: int,
    say: Callable[[str], None],
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="part-", dir=folder.parent) as temporary:
        _sweep(folder.parent, Path(temporary).stat().st_mtime)
        fresh = Path(temporary) / "corpus"  # made with the usual rights; the temporary folder is its owner's alone
        fresh.mkdir()
        vocabulary = max(tokenizer.get_vocab().values()) + 1
        for name, some in parts.items():
            say(f"encoding {len(some):,} documents ({name.replace('_', '-')})")
            ids, ends = _encoded(some, tokenizer, eos, np.uint16 if vocabulary <= 1 << 16 else np.uint32)
            np.save(fresh / f"{name}.ids.npy", ids, allow_pickle=False)
            np.save(fresh / f"{name}.ends.npy", ends, allow_pickle=False)
        (fresh / "tokenizer.json").write_text(text, "utf-8")
        meta = {"vocabulary": vocabulary, "eos": eos, **_sizes(parts["held_out"])}
        (fresh / "meta.json").write_text(json.dumps(meta), "utf-8")
        _publish(fresh, folder)


def _encoded(
    some: list[Document], tokenizer: "Tokenizer", eos: int, dtype: type[np.uint16 | np.uint32]
) -> tuple[NDArray[np.uint16 | np.uint32], NDArray[np.int64]]:
    parts, lengths = [np.zeros(0, dtype)], [0]
    for batch in _batches(some, BATCH):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            parts.append(np.array([*encoding.ids, eos], dtype))
            lengths.append(len(encoding.ids) + 1)
    return np.concatenate(parts), np.cumsum(lengths, dtype=np.int64)[1:]


def _batches(some: Iterable[Document], characters: int) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in some:
        batch.append(document.text)
        size += len(document.text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    yield batch


def _sizes(held_out: list[Document]) -> dict[str, int]:
    text = "".join(document.text for document in held_out).encode()
    return {"held_out_bytes": len(text), "held_out_zlib": len(zlib.compress(text, 9))}


def _sweep(cache: Path, now: float) -> None:
    """Removes what kills left behind. `now` is the file system's own time, in seconds."""
    for part in cache.glob("part-*"):
        if now - part.stat().st_mtime > LEFTOVER:
            shutil.rmtree(part, ignore_errors=True)


def _publish(fresh: Path, folder: Path) -> None:
    for path in fresh.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a name that survives a power cut must not outlive its bytes
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another job was first, with the same content
            raise
