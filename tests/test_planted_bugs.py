"""The bugs of scripts/plant fit the code, and planting one shows whether the tests see it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts/bugs"


@pytest.fixture(scope="module")
def listed():
    """(name, tests) of each bug; fails with the name of one whose place is not in the code once."""
    code = f"""
import sys, json, pathlib
sys.path.insert(0, {str(SCRIPTS)!r})
import main
[bug.planted(pathlib.Path({str(ROOT)!r})) for bug in main.BUGS]
print(json.dumps([(bug.name, bug.targets) for bug in main.BUGS]))
"""
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_bug_has_its_place_in_the_code_and_a_name_of_its_own(listed):
    assert len({name for name, _ in listed}) == len(listed) >= 30


def test_the_tests_that_should_see_them_are_there(listed):
    for name, targets in listed:
        for target in targets:
            file, _, function = target.partition("::")
            text = (ROOT / file).read_text()
            assert f"def {function.partition('[')[0]}" in text, (name, target)


def test_one_that_is_seen_is_told_with_its_test():
    command = [sys.executable, "-B", SCRIPTS / "main.py", "--json", "--only", "lanes are added one after the other"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    (found,) = json.loads(done.stdout)["results"]
    assert found["test"] == "tests/sync/test_tree.py::test_seven_lanes_are_added_as_the_docstring_says"
    assert done.returncode == 0


UNSEEN = """
import sys
sys.path.insert(0, {scripts!r})
import main
from bug import Bug
tests = "sync/test_tree.py::test_totals_add_in_the_order_of_the_tree"
main.BUGS = [Bug("harmless", "sync/tree.py", {old!r}, {new!r}, tests)]
sys.argv = ["main.py"]
sys.exit(main.main())
"""


@pytest.mark.parametrize(
    ("old", "new", "code", "says"),
    [
        ("IDLE_FOR_WHOLE_SUBTREES = 1 / 16", "IDLE_FOR_WHOLE_SUBTREES = 1 / 17", 1, r"harmless .* NOT CAUGHT"),
        ("no such line", "", 2, r"error: harmless: samestep/sync/tree.py holds 'no such line' 0 times, not once"),
        ("T = TypeVar", "T = = TypeVar", 2, "with the bug is no Python"),
    ],
    ids=["unseen", "stale", "broken"],
)
def test_one_that_is_not_seen_and_a_list_that_is_stale_have_codes_of_their_own(old, new, code, says):
    script = UNSEEN.format(scripts=str(SCRIPTS), old=old, new=new)
    done = subprocess.run([sys.executable, "-B", "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == code and re.search(says, done.stdout + done.stderr)
