"""A sample to its tokens, with those marked that are trained. What runs in every process that tokenizes."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samestep.data.formats import Refused, Sample, Turn
from samestep.data.source import Invalid
from samestep.data.template import Span, Template
from samestep.data.words import Words
from samestep.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Sequence:
    """ids: the tokens. trained: for each token whether it is learnt, None where all are.

    A sequence's first token follows from nothing and is no target, marked or not.
    """

    ids: list[int]
    trained: list[bool] | None


@dataclass(frozen=True)
class Text:
    """What one sequence is made of: its characters, those that are trained (None: all), and whether eos follows."""

    text: str
    spans: list[Span] | None
    ends: bool


class Encoder:
    """Samples to sequences under one tokenizer and template, one at a time: a process keeps one core busy."""

    def __init__(
        self,
        tokenizer: str,
        template: str | None,
        eos: str,
        special: dict[str, str],
        train_on: str,
        origin: str = "the model folder",
    ) -> None:
        """tokenizer: the text of a tokenizer.json. template: the chat template, None where there is none. eos: the
        token that ends a text or completion. special: the tokens that the template may name. train_on: answers | all.
        origin: what errors call the folder of all these.

        Raises DataError for a tokenizer or template that cannot be used.
        """
        self._tokenizer = _bare(parsed(tokenizer, f"tokenizer.json of {origin} is no tokenizer"))
        self._words = Words(self._tokenizer)
        self._eos_token, self._eos = eos, id_of(self._tokenizer, eos, origin, "a text")
        self._template = Template(template, special) if template is not None else None
        self._answers_only = train_on == "answers"
        self._origin = origin

    def encode(self, samples: list[Sample]) -> list[tuple[Sequence, ...] | Invalid]:
        """For each sample its sequence, of a preference the chosen and the rejected one; Invalid where it has none.

        Special tokens are added by the template alone; a text that spells one gets it, as in transformers.
        Raises DataError for a chat where there is no chat template.
        """
        return [self._encoded(sample) for sample in samples]

    def _encoded(self, sample: Sample) -> tuple[Sequence, ...] | Invalid:
        try:
            return tuple(self._sequence(text) for text in self._texts(sample))
        except Refused as refused:
            return Invalid(f"{sample.where}: {refused}")

    def _texts(self, sample: Sample) -> Iterator[Text]:
        for answer in sample.answers:
            if sample.format == "text":
                yield Text(str(answer), None, ends=True)
            elif isinstance(sample.prompt, str):
                yield self._pair(sample.prompt, str(answer))
            else:
                yield self._chat((*sample.prompt, *answer), len(sample.prompt), sample.where)

    def _pair(self, prompt: str, answer: str) -> Text:
        whole = prompt + answer
        spans = [(len(prompt), len(whole))] if self._answers_only else None
        return Text(whole, spans, ends=not answer.endswith(self._eos_token))

    def _chat(self, turns: tuple[Turn, ...], first: int, where: str) -> Text:
        if self._template is None:
            raise DataError(
                f"{where} is a chat, but {self._origin} has no chat template to render it with; put the model's "
                f"chat_template.jinja there or give prompt and completion as text"
            )
        if self._answers_only:
            return Text(*self._template.answers(turns, first), ends=False)
        return Text(self._template.render(turns), None, ends=False)

    def _sequence(self, text: Text) -> Sequence:
        end = [self._eos] if text.ends else []
        ids, offsets = self._words.encode(text.text)
        if text.spans is None:
            return Sequence(ids + end, None)
        trained = marked(offsets, text.spans) + [True] * len(end)
        if not any(trained):
            raise Refused("its answers have no token of their own once rendered, so nothing would be learnt; drop it")
        return Sequence(ids + end, trained)


def marked(offsets: list[Span], spans: list[Span]) -> list[bool]:
    """Which tokens begin inside a span; where none does, those that reach into one.

    offsets: the characters [start, end) of each token, starts rising. A token over the border of prompt and answer
    belongs to the prompt, since that is where it has to be predicted.
    """
    trained = [False] * len(offsets)
    for start, end in spans:
        low, high = bisect_left(offsets, (start,)), bisect_left(offsets, (end,))
        trained[low:high] = [True] * (high - low)
    if any(trained):
        return trained
    return [any(start < until and begin < end for begin, until in spans) for start, end in offsets]


def parsed(text: str, refusal: str) -> "Tokenizer":
    """The tokenizer of a tokenizer.json's text. Raises DataError that begins with `refusal` where it is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"{refusal} ({error}); save it anew with the tokenizers library") from error


def id_of(tokenizer: "Tokenizer", token: str, origin: str, ends: str) -> int:
    """The id of the token that `ends` a text or a document. Raises DataError where there is no such token."""
    found = tokenizer.token_to_id(token)
    if found is None:
        special = ", ".join(t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special) or "none"
        raise DataError(f"{origin}: no token {token} to end {ends} with; its special tokens are: {special}")
    return int(found)


def _bare(tokenizer: "Tokenizer") -> "Tokenizer":
    tokenizer.no_truncation()  # both are often left in the file and would cut or pad samples
    tokenizer.no_padding()
    tokenizer.post_processor = None  # it adds no token here, but would take spaces out of the offsets
    return tokenizer
