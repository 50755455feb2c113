"""What tends to sprawl is held here: forbidden names, sizes, public names, and folders without tests."""

import ast
from pathlib import Path

import pytest

import samestep

PACKAGE = Path(samestep.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
BANNED_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
BANNED_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load"}
# What may stand in some places only: (dotted name, where)
CONFINED = {
    "torch.distributed": lambda file: file == "wire/torch_backend.py",
    "os.environ": lambda file: file.startswith("launch/") or file == "replica/__main__.py",
    "os.getenv": lambda file: file.startswith("launch/") or file == "replica/__main__.py",
}


def dotted(node):
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def used(tree):
    yield from imported(tree)
    yield from (dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def offences(source, file):
    """The forbidden things in one file."""
    tree = ast.parse(source)
    names = set(used(tree))
    calls = {dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = {name for name in imported(tree) if name.split(".")[0] in BANNED_MODULES}
    found |= (calls | names) & BANNED_CALLS
    for name, allowed in CONFINED.items():
        found |= {n for n in names if (n == name or n.startswith(name + ".")) and not allowed(file)}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_forbidden_stands_in(file):
    assert not offences(file.read_text(), file.relative_to(PACKAGE).as_posix())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("from dill import loads", "dill"),
        ("import torch.distributed as dist", "torch.distributed"),
        ("from torch import distributed", "torch.distributed"),
        ("import torch\ntorch.distributed.barrier()", "torch.distributed"),
        ("import os\nprint(os.environ['HOME'])", "os.environ"),
        ("from os import environ", "os.environ"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("from torch import save", "torch.save"),
        ("eval('1')", "eval"),
        ("exec('1')", "exec"),
    ],
)
def test_the_ban_finds(source, name):
    assert any(found == name or found.startswith(name) for found in offences(source, "sync/exact.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(file):
    source = file.read_text()
    assert source.count("\n") <= 400
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 50] == []


def test_most_functions_are_under_fifteen_lines():
    sizes = sorted(
        node.end_lineno - node.lineno + 1
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    )
    assert sizes[len(sizes) // 2] <= 10
    assert sum(size < 15 for size in sizes) >= 0.75 * len(sizes)


def test_protocols_have_at_most_five_methods():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and any(dotted(base) == "Protocol" for base in node.bases):
                methods = [
                    n
                    for n in node.body
                    if isinstance(n, ast.FunctionDef) and "property" not in map(dotted, n.decorator_list)
                ]
                assert len(methods) <= 5, node.name


def test_the_public_names_are_these():
    assert samestep.__all__ == ["SGD", "AdamW", "Step", "mix", "start"]
    assert all(callable(getattr(samestep, name)) for name in samestep.__all__)
    with pytest.raises(AttributeError, match="has no attribute nothing"):
        _ = samestep.nothing


def test_every_folder_has_tests():
    tests = Path(__file__).parent
    folders = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    assert folders <= {folder.name for folder in tests.iterdir()}
