"""The YAML of recipes: nodes with places in, text out.

It is the part of YAML that a recipe needs, with the scalars of YAML 1.2 (core schema, section 10.3.2): `1e-3` is a
number, `no` is text, `010` is ten. Besides, `10_000_000` is an integer, and so is a float without a fraction, `1e9`.
Aliases and tags are refused.
"""

import re
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from samestep.errors import RecipeError

COMMAND_LINE = "command line"  # the name of text that came from there

# A part of PyYAML's message -> what to do.
ADVICE = {
    "'\\t'": "indent with spaces",
    "cannot start any token": "put the text in quotes",
    "mapping values": "put text that holds `: ` in quotes, and look at the indentation",
}

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def compose(text: str, name: str) -> yaml.Node | None:
    """The root node of `text`, None where there is nothing in it; the nodes' marks carry `name`.

    Raises:
        RecipeError: one line with the place: not YAML, or not the part of it that is read here.
    """
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_node()
    except ReaderError as error:
        line, wrong = text.count("\n", 0, error.position) + 1, text[error.position]
        raise RecipeError(f"{name}:{line}: {wrong!r} is not allowed in YAML; remove it") from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_explain(error, text, name)) from None
    except (ValueError, OverflowError):  # PyYAML calls chr() on whatever an escape says
        raise RecipeError(f"{name}: not YAML: an escape in quotes names no character; write the character") from None
    except RecursionError:
        raise RecipeError(f"{name}: nested too deep; a recipe has sections and keys, two levels") from None


def value(node: yaml.ScalarNode) -> int | float | bool | str | None:
    """What a scalar says: text where it is quoted."""
    return plain(node.value) if node.style is None else str(node.value)


def plain(text: str) -> int | float | bool | str | None:
    """What an unquoted scalar says."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return _number(text)
    except ValueError:  # no number, or more digits than int() takes
        return text


def write(data: dict[str, Any]) -> str:
    """`data`, sections of scalars, as YAML that `compose` and `value` read back unchanged; a key a line, in order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def place(mark: yaml.Mark) -> str:
    """`recipe.yaml:4:3`, or `command line`; a mark counts from 0, editors from 1."""
    if mark.name == COMMAND_LINE:
        return COMMAND_LINE
    return f"{mark.name}:{mark.line + 1}:{mark.column + 1}"


def _explain(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    says = ", ".join(part for part in (error.context, error.problem) if part)
    advice = next((f"; {advice}" for part, advice in ADVICE.items() if part in says), "")
    found = f" in {text!r}" if name == COMMAND_LINE else ""
    return f"{place(mark) if mark else name}: not YAML{found}: {says}{advice}"


def _number(text: str) -> int | float:
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _FLOAT.fullmatch(text):
        raise ValueError(text)
    number = float(text)
    return int(number) if number.is_integer() else number


class _Loader(yaml.SafeLoader):
    """Composes nodes whose scalars have no type yet."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML has it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise ComposerError(None, None, "aliases and tags are not used in recipes", event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `plain` takes for something else, besides what YAML 1.1 takes for something else."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() and isinstance(plain(text), str) else '"'  # in "" line breaks are escaped
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
