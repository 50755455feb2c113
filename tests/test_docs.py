"""The documentation against the source: errors, keys, files, links and commands that it names are there."""

import ast
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import samestep
from samestep import errors
from samestep.cli.app import app

PACKAGE = Path(samestep.__file__).parent
ROOT = PACKAGE.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OURS = [page for page in PAGES if page.name != "design.md"]
HOW = sorted(folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists())
FOR_USERS = {"RecipeError", "DataError", "ClusterError", "NotFinite", "Corrupted", "Stopped", "VerifyError"}
ANY = "…"  # in the place of what a message is filled with
# Messages without a word of their own: those that they are made of have entries.
PASSED_ON = {
    "recipe/load.py": "one problem a line",
    "recover/keeper.py": "what each place has refused",
    "launch/cause.py": "what recover/silence.py says of a replica that hangs",
}
MOST = 64  # texts that are made of one expression
LONGEST = 60  # lines of a page about a folder


# Errors


def pieces(node, scope):
    """The texts that an expression may stand for, with ANY for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        parts = [pieces(v.value if isinstance(v, ast.FormattedValue) else v, scope) for v in node.values]
        return ["".join(found) for found in itertools.islice(itertools.product(*parts), MOST)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a, b in itertools.product(pieces(node.left, scope), pieces(node.right, scope))]
    if isinstance(node, ast.IfExp):
        return pieces(node.body, scope) + pieces(node.orelse, scope)
    match node:
        case ast.Call(func=ast.Attribute(attr="join"), args=[ast.Call(func=ast.Name("map"), args=[each, _])]):
            return pieces(each, scope)  # of one of those that are joined
    node = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else node
    if isinstance(node, ast.Name) and node.id in scope:
        return [text for value in scope[node.id] for text in pieces(value, _without(scope, node.id))]
    return [ANY]


def _without(scope, name):
    return {key: value for key, value in scope.items() if key != name}


def scopes(tree):
    """Of each function: what its names are assigned, what the module's are, and what its functions return."""
    assigned = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
        if isinstance(node, ast.FunctionDef):
            assigned[node.name] = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        own = dict(assigned)
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                own.setdefault(node.targets[0].id, []).append(node.value)
        yield function, own


def told(source):
    """(line, class, texts) of each error of samestep's that is made in `source`."""
    for function, scope in scopes(ast.parse(source)):
        for node in ast.walk(function):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if node is not function and name in FOR_USERS | {"conflict"} and node.args:
                yield node.lineno, name, pieces(node.args[0], scope)


def code_of(name):
    return errors.RecipeError.exit_code if name == "conflict" else getattr(errors, name).exit_code


def entries(page):
    """Exit code -> the fixed words in the headings below it."""
    found, code = {}, None
    for line in page.splitlines():
        if line.startswith("## "):
            number = re.match(r"## Exit code (\d+)", line)
            code = int(number[1]) if number else None
        if line.startswith("#### "):
            words = [words.strip("`") for words in line.removeprefix("#### ").split(" · ")]
            found.setdefault(code, []).extend(words)
    return found


def matches(words, text):
    """Whether the words stand in the text, with anything where they have ANY between."""
    return re.search(".*".join(map(re.escape, words.split(ANY))), text, re.DOTALL) is not None


def lacking(source, known):
    """The errors of a file that no entry has the words of."""
    for line, name, texts in told(source):
        for text in texts:
            fixed = re.search(r"[a-z]{3}", text.replace(ANY, ""))
            if fixed and not any(matches(words, text) for words in known.get(code_of(name), [])):
                yield f"{line}: docs/troubleshooting.md has no entry under exit code {code_of(name)} for: {text}"


ENTRIES = entries((DOCS / "troubleshooting.md").read_text())
SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_error_has_an_entry(file):
    assert list(lacking(file.read_text(), ENTRIES)) == []


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_error_has_words_of_its_own_or_is_made_of_others(file):
    bare = [line for line, _, texts in told(file.read_text()) if not re.search(r"[a-z]{3}", "".join(texts))]
    assert bare == [] or file.relative_to(PACKAGE).as_posix() in PASSED_ON


def test_no_entry_is_of_an_error_that_is_gone():
    trees = [ast.parse(file.read_text()) for file in SOURCES]
    texts = {text for tree in trees for node in ast.walk(tree) for text in pieces(node, {})} - {ANY}
    assert [words for known in ENTRIES.values() for words in known if not any(matches(words, t) for t in texts)] == []


def test_entries_are_words_enough_to_find_an_error_by():
    known = [words for each in ENTRIES.values() for words in each]
    assert len(known) == len(set(known))
    assert [words for words in known if "`" in words or not re.fullmatch(r"[\w-].*", words)] == []
    assert [words for words in known if sum(map(str.isalpha, words)) < 6] == []


SOURCE = """
def load(path):
    says = f"{path} is gone; restore it"
    raise DataError(says)
def other(path):
    raise RecipeError(_why(path) if path else "no path; give one")
def several(paths):
    raise RecipeError("\\n".join(map(_why, paths)))
def _why(path):
    return f"{path} is " + "odd"
"""


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        ({3: ["is gone; restore it"], 2: ["no path; give one", "… is odd"]}, 0),
        ({3: ["is gone"], 2: ["no path; give one"]}, 2),
        ({2: ["is gone; restore it", "no path", "is odd"]}, 1),
        ({}, 4),
    ],
)
def test_the_walk_finds_errors_without_an_entry(known, missing):
    assert len(list(lacking(SOURCE, known))) == missing


# Keys


def test_the_page_of_recipes_is_that_of_the_schema():
    made = subprocess.run(
        [sys.executable, "scripts/recipe_page.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (DOCS / "recipes.md").read_text() == made.stdout, "run scripts/docs"


def test_every_key_of_a_recipe_has_a_meaning():
    rows = [line.split(" | ") for line in (DOCS / "recipes.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row[0] for row in rows if not row[-1].strip(" |")] == []


# Folders, files, links


@pytest.mark.parametrize("folder", HOW, ids=lambda folder: folder.name)
def test_every_file_of_a_folder_is_on_its_page(folder):
    page = (DOCS / "how" / f"{folder.name}.md").read_text()
    assert page.count("\n") <= LONGEST
    files = [file for file in sorted(folder.rglob("*.py")) if file.name not in ("__init__.py", "__main__.py")]
    lines = {f"- `{folder.name}/{file.relative_to(folder)}`": _first(file) for file in files}
    assert [f"{line}: {first}" for line, first in lines.items() if line.split("- ")[1] not in page] == []


def _first(file):
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def prose(page):
    """Without the blocks of code."""
    return re.sub(r"^```.*?^```$|^    .*$", "", page, flags=re.DOTALL | re.MULTILINE)


def named_files(text):
    """What stands in `...` and is the path of a file or folder of this project."""
    for words in re.findall(r"`([^`\n]+)`", text):
        for word in re.findall(r"^[\w./-]+(?= |$)", words):
            inside = word.split("/")[0] in {
                "samestep",
                "docs",
                "tests",
                "scripts",
                "benchmarks",
                "recipes",
                "examples",
                "deploy",
            }
            if (inside and "/" in word) or re.fullmatch(r"\w+(/\w+)+\.py", word):
                yield word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_file_that_is_named_is_there(page):
    named = list(named_files(prose(page.read_text()) if page in OURS else page.read_text()))
    assert [name for name in named if not ((ROOT / name).exists() or (PACKAGE / name).exists())] == []


def anchors(page):
    """Those that mkdocs makes of headings."""
    for heading in re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE):
        yield re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("page", OURS, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text()), link


class _Loader(yaml.SafeLoader):
    """mkdocs.yml may name Python objects."""


def leaves(nav):
    for item in nav:
        for value in item.values() if isinstance(item, dict) else [item]:
            yield from leaves(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation():
    known = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=_Loader)
    assert sorted(leaves(known["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)
    assert known["theme"]["font"] is False and known["strict"] is True


def test_numbers_come_with_the_place_where_they_were_measured():
    claims = re.compile(r"\d (x|%|ms|tokens/s|MB)\b")
    for page in OURS:
        for paragraph in re.split(r"\n\s*\n", prose(page.read_text())):
            if claims.search(paragraph):
                assert re.search(r"`(benchmarks|tests|scripts)/", paragraph), f"{page.name}: {paragraph}"


# Examples


def examples(page):
    """Each block of Python that is followed by what it prints."""
    return re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


WITH_EXAMPLES = [page for page in OURS if examples(page.read_text())]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_print_what_the_page_says(page):
    for code, printed in examples(page.read_text()):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == printed, done.stderr


def test_most_pages_about_folders_have_an_example():
    assert len(WITH_EXAMPLES) >= 10


# Commands


def commands(page):
    """What follows `$ samestep` or stands alone as such in a block of code."""
    for block in re.findall(r"^```(?:console)?\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ samestep "):
                yield line.removeprefix("$ samestep ").split(" | ")[0].split(" > ")[0].split("   #")[0]


@pytest.mark.parametrize(("page", "least"), [("index.md", 8), ("plan.md", 4), ("clusters.md", 3), ("look.md", 3)])
def test_the_commands_of_a_page_parse(page, least):
    found = list(commands((DOCS / page).read_text()))
    assert len(found) >= least
    group = typer.main.get_command(app)
    for line in found:
        verb, *arguments = shlex.split(line)
        group.get_command(None, verb).make_context(verb, arguments)


@pytest.mark.parametrize("line", [["--replica", "2"], ["--replicas", "two"]])
def test_a_command_that_does_not_parse_is_found(line):
    verb = typer.main.get_command(app).get_command(None, "train")
    with pytest.raises(Exception, match=r"No such option|valid integer"):
        verb.make_context("train", ["recipes/tiny.yaml", *line])
