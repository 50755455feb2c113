"""The model's chat template: turns to text, and where in that text the assistant answers.

Templates are Jinja as transformers documents it ("Writing a chat template"): the immutable sandbox, trim_blocks and
lstrip_blocks, break and continue, tojson that leaves HTML alone, raise_exception, {% generation %}. A rendering must
be the same on every day: strftime_now, lipsum and the filter `random` are not there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samestep.data.formats import Refused, Turn
from samestep.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Environment

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MARK = "generation_mark"  # the variable that stands at both ends of a {% generation %} block
FIRST_MARK = 0xFDD0  # a code point that Unicode keeps free of characters

Span = tuple[int, int]  # characters [start, end)
Chat = list[dict[str, str]]


def load(folder: Path) -> tuple[str | None, dict[str, str]]:
    """A model folder's chat template, None where it has none, and its special tokens by name ("eos_token": "</s>").

    chat_template.jinja goes before `chat_template` in tokenizer_config.json: text, or named ones, of which "default"
    is meant. Raises DataError for files that cannot be read.
    """
    config = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    try:
        tokens = {name: _content(config[name]) for name in SPECIAL if config.get(name)}
        given = _default(config.get("chat_template"))
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{folder / 'tokenizer_config.json'} is not what a tokenizer writes ({error!r}); save it anew"
        ) from error
    file = folder / "chat_template.jinja"
    try:
        return (file.read_text("utf-8") if file.is_file() else given), tokens
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file} as UTF-8 ({error}); save it anew") from error


class Template:
    """A compiled chat template. Rendering three turns takes some 20 microseconds."""

    def __init__(self, text: str, special: dict[str, str]) -> None:
        """special: tokens by name, which the template may use. Raises DataError for what is no template."""
        from jinja2 import TemplateError

        try:
            self._template = _environment().from_string(text)
        except TemplateError as error:
            line = f"line {error.lineno}: " if hasattr(error, "lineno") else ""
            raise DataError(
                f"the chat template does not compile ({line}{error}); repair chat_template.jinja"
            ) from error
        self._special = special
        self._marks_answers = "endgeneration" in text

    def render(self, turns: Sequence[Turn], *, prompt: bool = False) -> str:
        """The text of a chat as transformers' apply_chat_template gives it; prompt: with the start of an answer.

        Raises Refused with the template's own words where it refuses the chat, DataError where it needs the date.
        """
        return self._rendered(_chat(turns), prompt)

    def answers(self, turns: Sequence[Turn], first: int = 0) -> tuple[str, list[Span]]:
        """The text of a chat and the span of each assistant turn from turn `first` on, with what ends the turn.

        An answer goes from the end of the prompt before it to the end of the chat that it ends, without whitespace
        after it; both must be beginnings of the whole text. Templates that render turns in another way once others
        follow are asked for their {% generation %} blocks. Costs a rendering more for the last answer, two for others.
        Raises Refused where the chat has no answer or the answers cannot be told apart.
        """
        chat = _chat(turns)
        which = [i for i in range(first, len(chat)) if chat[i]["role"] == "assistant"]
        if not which:
            raise Refused("no assistant turn, so nothing would be learnt; drop the row or set objective.train_on: all")
        whole = self._rendered(chat, False)
        spans = [self._answer(chat, i, whole) for i in which]
        found = [span for span in spans if span]
        return whole, found if len(found) == len(spans) else self._generated(chat, which, whole)

    def _answer(self, chat: Chat, i: int, whole: str) -> Span | None:
        try:
            before = self._rendered(chat[:i], True)
            through = whole if i + 1 == len(chat) else self._rendered(chat[: i + 1], False)
        except Refused:  # the template takes the whole chat but not its beginning
            return None
        if through.startswith(before) and whole.startswith(through):
            return len(before), len(through.rstrip())
        return None

    def _generated(self, chat: Chat, which: list[int], whole: str) -> list[Span]:
        """The {% generation %} blocks of the assistant turns `which`: the text is rendered with marks around them."""
        mark = next(chr(point) for point in range(FIRST_MARK, 0x110000) if chr(point) not in whole)
        pieces = self._rendered(chat, False, mark).split(mark) if self._marks_answers else []
        assistants = [i for i, turn in enumerate(chat) if turn["role"] == "assistant"]
        if len(pieces) != 2 * len(assistants) + 1 or "".join(pieces) != whole:
            raise Refused(
                "the chat template does not render the turns before an answer as the beginning of the whole chat, so "
                "its answers cannot be found; put {% generation %} around them in the template, give each answer "
                "its own chat, or set objective.train_on: all"
            )
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
        spans = {turn: (ends[2 * n + 1], ends[2 * n + 2]) for n, turn in enumerate(assistants)}
        return [spans[i] for i in which]

    def _rendered(self, chat: Chat, prompt: bool, mark: str = "") -> str:
        from jinja2 import TemplateError

        variables = {**self._special, "messages": chat, "tools": None, "documents": None}
        try:
            return self._template.render(variables, add_generation_prompt=prompt, **{MARK: mark})
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            if "strftime_now" in str(error):
                raise DataError(
                    "the chat template asks for today's date (strftime_now), so the same data would give another "
                    "model on another day; write a fixed date into chat_template.jinja"
                ) from error
            raise Refused(f"the chat template refuses it: {error}".replace("\n", " ")) from error


def _environment() -> "Environment":
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: its text between two marks, as a scope of its own."""

        tags = {"generation"}  # noqa: RUF012  jinja reads it from the class

        def parse(self, parser: Parser) -> list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            mark = nodes.Output([nodes.Name(MARK, "load")], lineno=line)
            return [mark, nodes.Scope(body, lineno=line), mark]

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _chat(turns: Sequence[Turn]) -> Chat:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error}); save the tokenizer anew") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} must be a JSON object, it is of type {type(found).__name__}; save the tokenizer anew")
    return found


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _default(given: Any) -> str | None:
    """Of templates with names the one called default."""
    if isinstance(given, list):
        given = {one["name"]: one["template"] for one in given}.get("default")
    return None if given is None else str(given)
