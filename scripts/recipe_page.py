"""Prints docs/recipes.md: every key of a recipe with its type, default and comment, from the schema's own source.

python scripts/recipe_page.py > docs/recipes.md
"""

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from samestep.recipe import machines
from samestep.recipe.schema import Causal, Diloco, Dpo, Lora, Recipe, Reward, Sft

HEAD = """# Recipes

<!-- Made by scripts/docs from samestep/recipe/schema.py and machines.py; change it there. -->

A recipe is a YAML file: `section.key: value`. On the command line any key can be changed: `optimizer.clip=0.5`.
Everything but the section `run` is part of the mathematics and may change the model; `run` is about machines and may
not.
A mistyped key is answered with file, line, column and the nearest key. `samestep init KIND` writes a commented recipe,
and `recipes/` has six that are trained by the tests.

A *lane* is one of the equal shares of a step. A step reads `lanes` x `batch.accumulate` x `batch.micro_batch` rows of
`data.context` tokens. Exactly one of `steps`, `tokens` and `epochs` has to be set.
"""
# Sections in the order of the page, by the name under which their keys are written.
UNDER = {"model.lora": Lora, "sync.diloco": Diloco, "run.hosts.NAME": machines.Host}
KINDS = {"causal": Causal, "sft": Sft, "dpo": Dpo, "reward": Reward}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "`null`"}
LARGEST = 2**53  # bounds beyond say nothing to a reader


def page() -> str:
    return "\n".join([HEAD, *_section("", Recipe, _own(Recipe)), *_sections()])


def _sections() -> Iterator[str]:
    for name, field in Recipe.model_fields.items():
        if name == "objective":
            yield from _objectives()
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _section(name, field.annotation, _own(field.annotation))
            yield from (
                line for key, kind in UNDER.items() if key.startswith(name + ".") for line in _section(key, kind)
            )


def _objectives() -> Iterator[str]:
    for name, kind in KINDS.items():
        yield from _section("objective", kind, [key for key in kind.model_fields if key != "kind"], f", kind {name}")


def _own(section: type[BaseModel]) -> list[str]:
    """Its keys that are no sections themselves."""
    nested = {key for key, field in section.model_fields.items() if isinstance(field.default, BaseModel)}
    return [key for key in section.model_fields if key not in nested]


def _section(name: str, section: type[BaseModel], keys: list[str] | None = None, kind: str = "") -> Iterator[str]:
    said, properties = comments(section), section.model_json_schema()["properties"]
    yield f"## `{name}`{kind}\n" if name else "## The length and the seed\n"
    if section.__doc__ and name:
        yield " ".join(section.__doc__.split()) + "\n"
    rows = [_row(name, key, properties[key], said[key]) for key in keys or section.model_fields if key != "objective"]
    if keys != []:
        yield from ["| key | type | default | meaning, with its unit |", "|---|---|---|---|", *rows, ""]


def _row(section: str, key: str, known: dict[str, Any], meaning: str) -> str:
    name = f"{section}.{key}" if section else key
    default = f"`{_written(known['default'])}`" if "default" in known else "must be set"
    return f"| `{name}` | {_type(known)} | {default} | {meaning.replace('|', chr(92) + '|')} |"


def _written(value: object) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("\n").removesuffix("\n...")


def _type(known: dict[str, Any]) -> str:
    if "enum" in known or "const" in known:
        return ", ".join(f"`{value}`" for value in known.get("enum", [known.get("const")]))
    if "anyOf" in known:
        return " or ".join(_type(each) for each in known["anyOf"])
    if "$ref" in known:
        return "section"
    kind = known.get("type", "")
    if kind == "array":
        return f"list of {_type(known['items'])}"
    if kind == "object":
        return "section"
    bounds = [text.format(known[key]) for key, text in BOUNDS.items() if abs(known.get(key, LARGEST)) < LARGEST]
    return ", ".join([NAMES[kind], *bounds])


def comments(section: type[BaseModel]) -> dict[str, str]:
    """The comment of each key, behind it or in the line above; empty where there is none."""
    source = inspect.getsource(section)
    lines, (tree,) = source.splitlines(), ast.parse(source).body
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign):
            behind = re.search(r"  # (.*)", lines[node.end_lineno - 1])
            above = re.fullmatch(r" *# (.*)", lines[node.lineno - 2])
            found[node.target.id] = (behind or above)[1] if behind or above else ""
    return found


if __name__ == "__main__":
    print(page(), end="")
