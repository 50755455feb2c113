"""WHAT a row is: one of the formats of fine-tuning data, told by its keys, or the reason why it is none.

    text                {"text": "..."}                                          another key: data.text_field
    prompt_completion   {"prompt": "...", "completion": "..."}                   or both as turns
    messages            {"messages": [{"role": "user", "content": "..."}, ...]}
    preference          {"prompt": "...", "chosen": "...", "rejected": "..."}    or all three as turns;
                        {"chosen": [turns], "rejected": [turns]}                 their shared first turns are the prompt

A turn is {"role": ..., "content": ...}. Other keys of a row are left alone: they are metadata.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from samestep.data.source import Invalid
from samestep.recipe.schema import Data

ROLES = ("system", "user", "assistant", "tool")
RENAMED = {"human": "user", "gpt": "assistant", "bot": "assistant", "ai": "assistant", "model": "assistant"}
LOST = ("tool_calls", "reasoning_content", "thinking", "weight")  # of a turn; dropping them would train something else


@dataclass(frozen=True)
class Turn:
    role: str  # one of ROLES
    content: str


Turns = tuple[Turn, ...]
Parts = tuple[str | Turns, tuple[str | Turns, ...]]  # a prompt and its answers


@dataclass(frozen=True)
class Sample:
    """One sample. What is learnt is `answers`: of a preference the chosen and the rejected one, else one.

    text: answers is (text,). prompt_completion: prompt and (completion,). messages: answers is (turns,), prompt empty.
    preference: prompt and (chosen, rejected). Prompt and answers are all text or all turns. Two samples of the same
    content are equal, wherever they stand.
    """

    format: str  # a key of FORMATS
    prompt: str | Turns
    answers: tuple[str | Turns, ...]
    where: str = field(compare=False)  # file:line, for messages

    @property
    def empty(self) -> bool:
        """Whether it is a text without a character, which is left out."""
        return self.answers == ("",)


class Refused(Exception):
    """Why one sample cannot be used: a sentence, which whoever knows the place makes an Invalid."""


def read(fields: Mapping[str, Any], data: Data, where: str) -> Sample | Invalid:
    """The sample of one row, or an Invalid whose message begins with `where`, its file:line. Raises nothing.

    A key whose value is null counts as not there, as in Parquet, where every row has all columns.
    """
    try:
        name = _recognised(fields, data.text_field)
        prompt, answers = FORMATS[name].read(fields, data.text_field)
        return Sample(name, prompt, answers, where)
    except Refused as refused:
        return Invalid(f"{where}: {refused}")


def _recognised(fields: Mapping[str, Any], text_field: str) -> str:
    there = [key for key, value in fields.items() if value is not None]
    for keys in (there, fields):
        whole = [name for name, format in FORMATS.items() if format.fits(keys, text_field)]
        if len(whole) == 1:
            return whole[0]
        if whole:
            raise Refused(f"this is {' and '.join(whole)} at once (keys {_listed(keys)}); keep the keys of one")
    begun = {"chosen": "preference", "rejected": "preference", "completion": "prompt_completion"}
    for key in there:
        if key in begun:
            return begun[key]
    raise Refused(_nothing(fields, text_field))


def _nothing(fields: Mapping[str, Any], text_field: str) -> str:
    way_out = "set data.text_field to a field of text, or give messages, prompt and completion, or chosen and rejected"
    if "conversations" in fields:
        way_out = "rename conversations to messages and write its turns as role and content"
    return f"no field '{text_field}' and no other known one among {_listed(fields)}; {way_out}"


def _text(fields: Mapping[str, Any], text_field: str) -> Parts:
    name = text_field if text_field in fields else "text"
    return "", (_string(fields[name], f"field '{name}'"),)


def _prompt_completion(fields: Mapping[str, Any], _text_field: str) -> Parts:
    return _parts(fields, ("completion",))


def _messages(fields: Mapping[str, Any], _text_field: str) -> Parts:
    if fields.get("tools"):
        raise Refused("field 'tools' is not read and would be lost; write the tools into a system turn")
    return (), (_turns(fields["messages"], "messages"),)


def _preference(fields: Mapping[str, Any], _text_field: str) -> Parts:
    prompt, (chosen, rejected) = _parts(fields, ("chosen", "rejected"))
    if chosen == rejected:
        raise Refused("chosen and rejected are the same, which prefers nothing; drop the row")
    return prompt, (chosen, rejected)


def _parts(fields: Mapping[str, Any], names: tuple[str, ...]) -> Parts:
    """The prompt and the answers `names`: all of them text, or all of them turns."""
    given = {name: fields.get(name) for name in ("prompt", *names)}
    for name, value in given.items():
        if value is None and not (name == "prompt" and _whole_chats(given)):
            raise Refused(f"no field '{name}'; {' and '.join(given)} belong together, and {_listed(fields)} are there")
        if value is not None and not isinstance(value, str | list):
            raise Refused(f"field '{name}' must be text or a list of turns, it is of type {_type(value)}")
    kinds = {name: _type(value) for name, value in given.items() if value is not None}
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{name} of type {kind}" for name, kind in kinds.items())
        raise Refused(f"{' and '.join(given)} must be all text or all lists of turns; {found}")
    return _texts(given, names) if kinds[names[0]] == "str" else _chats(given, names)


def _whole_chats(given: Mapping[str, Any]) -> bool:
    return isinstance(given.get("chosen"), list) and isinstance(given.get("rejected"), list)


def _texts(given: Mapping[str, Any], names: tuple[str, ...]) -> Parts:
    for name in names:
        if not given[name].strip():
            raise Refused(f"field '{name}' is empty, so nothing would be learnt; fill it or drop the row")
    return given["prompt"], tuple(given[name] for name in names)


def _chats(given: Mapping[str, Any], names: tuple[str, ...]) -> Parts:
    answers = tuple(_turns(given[name], name) for name in names)
    if given["prompt"] is None:
        shared = _shared(*answers)
        prompt, answers = answers[0][:shared], tuple(answer[shared:] for answer in answers)
    else:
        prompt = _turns(given["prompt"], "prompt")
    if not prompt:
        raise Refused("chosen and rejected share no first turn that could be the prompt; give it as prompt")
    if prompt[-1].role == "assistant":
        raise Refused("the prompt ends with an assistant turn, which is an answer already; end it before that turn")
    for name, answer in zip(names, answers, strict=True):
        if not answer or answer[0].role != "assistant":
            found = f"its first turn is {answer[0].role}" if answer else "it is empty"
            raise Refused(f"{name} must go on after the prompt with an assistant turn; {found}")
    return prompt, answers


def _shared(chosen: Turns, rejected: Turns) -> int:
    """How many first turns two chats share; of equal chats the last turn is not shared, so that it is compared."""
    most = min(len(chosen), len(rejected)) - (chosen == rejected)
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _turns(value: Any, name: str) -> Turns:
    if not isinstance(value, list):
        raise Refused(f"field '{name}' must be a list of turns, it is of type {_type(value)}")
    if not value:
        raise Refused(f"field '{name}' is an empty list; give at least one turn or drop the row")
    return tuple(_turn(turn, f"{name}[{i}]") for i, turn in enumerate(value))


def _turn(value: Any, name: str) -> Turn:
    if not isinstance(value, dict):
        raise Refused(f"{name} must be an object with role and content, it is of type {_type(value)}")
    for key in ("role", "content"):
        if key not in value:
            raise Refused(f"{name} has no '{key}'; a turn is role and content, and {_listed(value)} are there")
    lost = next((key for key in LOST if value.get(key) is not None), None)
    if lost:
        raise Refused(f"{name}.{lost} is not read and would be lost; write it into content or take it out")
    turn = Turn(_string(value["role"], f"{name}.role"), _string(value["content"], f"{name}.content"))
    if turn.role not in ROLES:
        way_out = f"rename it to {RENAMED[turn.role]}" if turn.role in RENAMED else f"use one of {', '.join(ROLES)}"
        raise Refused(f"{name}.role {turn.role!r} is not known; {way_out}")
    if turn.role == "assistant" and not turn.content.strip():
        raise Refused(f"{name}.content of the assistant is empty, so nothing would be learnt; fill it or drop the row")
    return turn


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Refused(f"{name} must be text, it is of type {_type(value)}; repair or drop the row")
    return value


def _type(value: Any) -> str:
    return type(value).__name__


def _listed(keys: Collection[str]) -> str:
    """At most ten of the keys, each at most 40 characters: the row may be anything."""
    few = [key[:40] for key in list(keys)[:10]] + ["..."] * (len(keys) > 10)
    return ", ".join(few) or "(none)"


@dataclass(frozen=True)
class Format:
    """A format: the keys that it is told by (text: data.text_field) and its reader of a row with them."""

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], Parts]

    def fits(self, there: Collection[str], text_field: str) -> bool:
        if self.keys:
            return all(key in there for key in self.keys)
        # the row of a text file is {"text": ...}, whatever data.text_field is
        return text_field in there or list(there) == ["text"]


FORMATS: dict[str, Format] = {
    "text": Format((), _text),
    "prompt_completion": Format(("prompt", "completion"), _prompt_completion),
    "messages": Format(("messages",), _messages),
    "preference": Format(("chosen", "rejected"), _preference),
}
