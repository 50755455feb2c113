"""Reads a recipe: a YAML file, then `section.key=value` from the command line; every problem comes with its place."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from samestep.errors import RecipeError
from samestep.recipe import notation
from samestep.recipe.notation import COMMAND_LINE, place
from samestep.recipe.schema import Causal, Dpo, Lora, Recipe, Reward, Sft

KeyPath = tuple[str, ...]

LENGTHS = ("steps", "tokens", "epochs")
ANY = "*"  # in the place of a name that the user chooses

# What pydantic found -> what the key must be; the names in braces come from pydantic's context.
RULES = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "list_type": "must be a list, such as [a, b]",
    "dict_type": "must be a section of sections by name, such as h0: {{address: 10.77.0.1}}",
    "model_type": "must be a section; give it keys or remove it",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
    "value_error": "{error}",
    "union_tag_invalid": "its kind must be one of {expected_tags}",
    "union_tag_not_found": "needs a kind: causal, sft, dpo or reward",
}

OBJECTIVES: dict[str, type[BaseModel]] = {"causal": Causal, "sft": Sft, "dpo": Dpo, "reward": Reward}

_DEFAULTS: dict[str, Any] = Recipe.model_construct().model_dump()
_DEFAULTS["model"]["lora"] = Lora().model_dump()  # null unless given, but its keys are known
_DEFAULTS["run"]["hosts"] = {ANY: {"start": "", "address": None, "replicas": 1}}
_DEFAULTS["objective"] = {
    key: field.default for kind in OBJECTIVES.values() for key, field in kind.model_fields.items()
} | {"kind": "causal"}


@dataclass
class _Written:
    """Where each key and each value stands, and what is wrong with them so far."""

    keys: dict[KeyPath, yaml.Mark] = field(default_factory=dict)
    values: dict[KeyPath, yaml.Mark] = field(default_factory=dict)
    problems: list[tuple[yaml.Mark, str]] = field(default_factory=list)


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the file `path`, changed by `overrides` such as `batch.micro_batch=8` or `steps=5`.

    The value of an override is YAML. One of steps, tokens and epochs among the overrides takes the place of all
    three in the file.

    Raises:
        RecipeError: all problems, one a line, those of the file in its order and then the command line's:
            `recipe.yaml:4:3: model.widht is not a known key; did you mean width?`
    """
    written = _Written()
    data = _read(path, written)
    for override in overrides:
        _override(override, data, written)
    _keep_asked_length(data, written)
    try:
        recipe = Recipe.model_validate(data, strict=True)
    except ValidationError as error:
        written.problems += [_explain(detail, written) for detail in error.errors(include_url=False)]
    if written.problems:
        ordered = sorted(written.problems, key=lambda problem: _order(problem[0]))
        raise RecipeError("\n".join(f"{place(mark)}: {text}" for mark, text in ordered))
    return recipe


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, every key in the schema's order; `load` reads an equal recipe from it."""
    return notation.write(recipe.model_dump())


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of an error that names the one of `words` nearest to `word`; empty where none is near."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""


# The file


def _read(path: Path, written: _Written) -> dict[str, Any]:
    root = notation.compose(_text(path), str(path))
    if root is None:
        raise RecipeError(f"{path} is empty; a recipe needs at least a length, such as steps: 300")
    data = _value(root, (), written)
    if not isinstance(data, dict):
        raise RecipeError(f"{place(root.start_mark)}: this is {_shown(data)}, but a recipe is `key: value` lines")
    return data


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe{_near(path) or '; give the path of a YAML file'}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder, but a recipe is a YAML file{_inside(path)}") from None
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise RecipeError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save the recipe as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}; give the path of a YAML file") from None


def _near(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)


def _inside(folder: Path) -> str:
    found = sorted(folder.glob("*.y*ml"))
    return f"; did you mean {found[0]}?" if found else "; give the path of one"


def _value(node: yaml.Node, path: KeyPath, written: _Written) -> Any:
    written.values[path] = node.start_mark
    if isinstance(node, yaml.ScalarNode):
        return notation.value(node)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, written)
    return [_value(item, (*path, str(index)), written) for index, item in enumerate(node.value)]


def _mapping(node: yaml.MappingNode, path: KeyPath, written: _Written) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or section"
        here = (*path, key)
        if key in data:
            text = f"{_dotted(here)} is set twice, first in line {written.keys[here].line + 1}; keep one"
            written.problems.append((key_node.start_mark, text))
        else:
            written.keys[here] = key_node.start_mark
            data[key] = _value(value_node, here, written)
    return data


# The command line


def _override(text: str, data: dict[str, Any], written: _Written) -> None:
    name, equals, value = text.partition("=")
    path = tuple(name.split("."))
    node = notation.compose(value, COMMAND_LINE)
    if node is None or not (equals and all(path)):
        raise RecipeError(f"{COMMAND_LINE}: {text!r} is not an override; write section.key=value, such as steps=300")
    under = {key for key in written.keys if key[: len(path)] == path}
    if any(written.keys[key].name == COMMAND_LINE for key in under):
        written.problems.append((node.start_mark, f"{_dotted(path)} is set twice; keep one"))
    for key in under:
        del written.keys[key]
    section = _section(path, data, node.start_mark, written)
    written.keys[path] = node.start_mark
    section[path[-1]] = _value(node, path, written)


def _section(path: KeyPath, data: dict[str, Any], mark: yaml.Mark, written: _Written) -> dict[str, Any]:
    """The mapping in `data` that holds the last key of `path`, made where there is none."""
    for depth, key in enumerate(path[:-1], start=1):
        here = path[:depth]
        if here not in written.keys:
            written.keys[here] = written.values[here] = mark
        if not isinstance(data.setdefault(key, {}), dict):
            written.problems.append((mark, f"{_dotted(path)} cannot be set: {_dotted(here)} is {_shown(data[key])}"))
            return {}
        data = data[key]
    return data


def _keep_asked_length(data: dict[str, Any], written: _Written) -> None:
    asked = [key for key in LENGTHS if key in data and written.keys[(key,)].name == COMMAND_LINE]
    for key in LENGTHS:
        if asked and key not in asked:
            data.pop(key, None)


# Words


def _explain(error: ErrorDetails, written: _Written) -> tuple[yaml.Mark, str]:
    """One error of pydantic's as the place to look at and a sentence."""
    path = _without_kind(tuple(str(key) for key in error["loc"]))
    context = error.get("ctx", {})
    if error["type"] == "conflict":
        return _deciding(path, context["keys"], written), context["message"]
    if error["type"] == "extra_forbidden":
        return written.keys[path], _of_another_kind(path, error["loc"]) or _unknown(path)
    if error["type"] == "missing":
        return written.keys[path[:-1]], f"{_dotted(path[:-1])} has no {path[-1]}, which it needs; write it there"
    rule = RULES.get(error["type"], error["msg"]).format(**context)
    while path not in written.values:  # pydantic adds the names of a union's members
        path = path[:-1]
    return written.values[path], f"{_dotted(path)} is {_shown(error['input'])}, but {rule}{_default(path)}"


def _without_kind(path: KeyPath) -> KeyPath:
    """pydantic puts the kind of the objective between the section and its key."""
    return (path[0], *path[2:]) if path[:1] == ("objective",) and path[1:2] and path[1] in OBJECTIVES else path


def _deciding(section: KeyPath, keys: Sequence[str], written: _Written) -> yaml.Mark:
    """The one of `keys` that was typed on the command line, else the first that is in the file, else the section."""
    paths = [(*section, *key.split(".")) for key in keys]
    marks = [written.keys[path] for path in paths if path in written.keys]
    typed = [mark for mark in marks if mark.name == COMMAND_LINE]
    return (typed or marks or [written.keys.get(section, written.values[()])])[0]


def _unknown(path: KeyPath) -> str:
    known = _known(path[:-1]) or {}
    elsewhere = [name for name in _names() if name.split(".")[-1] == path[-1]]
    hint = f"; did you mean {elsewhere[0]}?" if elsewhere else did_you_mean(path[-1], known)
    return f"{_dotted(path)} is not a known key{hint or '; the keys here are ' + ', '.join(known)}"


def _of_another_kind(path: KeyPath, loc: Sequence[int | str]) -> str:
    owners = [name for name, section in OBJECTIVES.items() if path[-1] in section.model_fields]
    if path[0] != "objective" or not owners:
        return ""
    return f"{_dotted(path)} is a key of kind {' and '.join(owners)}, but objective.kind is {loc[1]}; remove it"


def _known(path: KeyPath) -> Any:
    """What stands at `path` by default: a dict for a section, None for what is not there."""
    known: Any = _DEFAULTS
    for key in path:
        known = known.get(key, known.get(ANY)) if isinstance(known, dict) else None
    return known


def _names() -> list[str]:
    sections = {name: keys for name, keys in _DEFAULTS.items() if isinstance(keys, dict)}
    return [*_DEFAULTS, *(f"{name}.{key}" for name, keys in sections.items() for key in keys)]


def _default(path: KeyPath) -> str:
    default = _known(path)
    return "" if default is None or isinstance(default, dict) else f"; the default is {_shown(default)}"


def _shown(value: object) -> str:
    """A value on one line, in YAML's words."""
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:60]!r}..."
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _dotted(path: KeyPath) -> str:
    name = ".".join(path)
    return name if name.isprintable() else repr(name)


def _order(mark: yaml.Mark) -> tuple[bool, int, int]:
    return mark.name == COMMAND_LINE, mark.line, mark.column
