"""The tokens of a text, word by word from a table: the same as the tokenizers library gives, in a third of its time.

A byte-level tokenizer takes out the added tokens (<|im_end|> and the like), cuts the rest into words by a regular
expression, and encodes every word for itself. So the tokens of a word are always the same, and cutting is most of the
work. Of ASCII text Python's `re` cuts the same words, at a tenth of the cost. Everything else is left to the library:
pieces with other characters, and every tokenizer that does more than this.
"""

import json
import re
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Span = tuple[int, int]  # characters [start, end)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of ByteLevel with use_regex
KNOWN = 100_000  # words in the table; some 30 MB
LONGEST = 40  # characters of a word in the table
ASCII = {r"\p{L}": "A-Za-z", r"\p{N}": "0-9"}  # as parts of a class
SAME = (r"\s", r"\S", r"\r", r"\n", "(?i:", "(?:", "(?!")  # to Oniguruma and, under re.ASCII, to Python
PARTS = re.compile(r"\\p\{\w+\}|\\.|\(\?[i!]?:?|\{[\d,]+\}\+?|\[\^?|.", re.DOTALL)
PLAIN = set("'|?+*), ") | set("abcdefghijklmnopqrstuvwxyz") | set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Words:
    """A tokenizer with its table of words. Encodes in the calling thread alone."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        """tokenizer: without truncation, padding and post-processor."""
        described = json.loads(tokenizer.to_str())
        self._tokenizer = tokenizer
        self._added: dict[str, int] = {token["content"]: token["id"] for token in described["added_tokens"]}
        self._cut = re.compile(f"({'|'.join(map(re.escape, sorted(self._added, key=len, reverse=True)))})")
        self._word = word_pattern(described)
        self._known: dict[str, tuple[list[int], list[int]]] = {}

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """The ids and the characters of each token."""
        if self._word is None:
            return self._asked(text, 0)
        ids: list[int] = []
        spans: list[Span] = []
        at = 0
        for piece in self._cut.split(text) if self._added else [text]:
            if piece:
                found, where = self._piece(piece, at, self._word)
                ids += found
                spans += where
                at += len(piece)
        return ids, spans

    def _piece(self, piece: str, at: int, word_pattern: re.Pattern[str]) -> tuple[list[int], list[Span]]:
        if piece in self._added:
            return [self._added[piece]], [(at, at + len(piece))]
        if not piece.isascii():
            return self._asked(piece, at)
        ids: list[int] = []
        sizes: list[int] = []
        for word in word_pattern.findall(piece):
            found = self._known.get(word) or self._learnt(word)
            ids += found[0]
            sizes += found[1]
        ends = list(accumulate(sizes, initial=at))
        if ends[-1] != at + len(piece):  # the expression leaves characters between its words
            return self._asked(piece, at)
        return ids, list(pairwise(ends))

    def _learnt(self, word: str) -> tuple[list[int], list[int]]:
        ids, spans = self._asked(word, 0)
        found = ids, [end - start for start, end in spans]
        if len(word) <= LONGEST and len(self._known) < KNOWN:
            self._known[word] = found
        return found

    def _asked(self, text: str, at: int) -> tuple[list[int], list[Span]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans = encoding.offsets
        return encoding.ids, [(start + at, end + at) for start, end in spans] if at else spans


def word_pattern(described: dict[str, Any]) -> re.Pattern[str] | None:
    """What cuts ASCII text into the words of a tokenizer.json; None where it is not certain that words are all."""
    plain = all(
        not (token["single_word"] or token["lstrip"] or token["rstrip"] or token["normalized"])
        for token in described["added_tokens"]
    )
    normalizer = described["normalizer"]
    identity = normalizer is None or normalizer == {"type": "NFC"}  # NFC leaves ASCII as it is
    if not plain or not identity or described["model"].get("dropout"):
        return None
    written = _written(described["pre_tokenizer"] or {})
    translated = None if written is None else ascii_pattern(written)
    return None if translated is None else re.compile(translated, re.ASCII)


def _written(cutter: dict[str, Any]) -> str | None:
    """The regular expression of a byte-level pre-tokenizer: its own, or that of a Split before it."""
    steps = cutter["pretokenizers"] if cutter.get("type") == "Sequence" else [cutter]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if len(steps) == 1 and last["use_regex"]:
        return GPT2
    if len(steps) == 2 and not last["use_regex"] and steps[0].get("type") == "Split":
        split = steps[0]
        return split["pattern"].get("Regex") if split["behavior"] == "Isolated" and not split["invert"] else None
    return None


def ascii_pattern(written: str) -> str | None:
    r"""An Oniguruma expression in Python's syntax, for ASCII text; None where it uses more than words need.

    \p{L} and \p{N} become their ASCII characters.
    """
    out, inside = "", False
    for part in PARTS.findall(written):
        if part in ASCII:
            out += ASCII[part] if inside else f"[{ASCII[part]}]"
        elif part in ("[", "[^", "]"):
            if inside is (part != "]"):
                return None
            inside = part != "]"
            out += part
        elif part in PLAIN or part in SAME or re.fullmatch(r"\{[\d,]+\}", part):
            out += part
        else:
            return None
    return out
