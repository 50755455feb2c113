"""The YAML of recipes: which scalar is what, and what is refused."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import RecipeError
from samestep.recipe.notation import compose, plain, value, write


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1e-3", 0.001), ("1.0e-08", 1e-8), (".5", 0.5), ("-2.5", -2.5),
        ("10_000_000", 10_000_000), ("010", 10), ("+3", 3), ("1e9", 10**9), ("4.0", 4),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("0x10", "0x10"),
        ("1__0", "1__0"), ("_1", "_1"), (".", "."), (".inf", ".inf"), ("nan", "nan"), ("1" * 5000, "1" * 5000),
    ],
)  # fmt: skip
def test_a_plain_scalar_means_what_it_does_in_yaml_1_2(text: str, meant: object) -> None:
    found = plain(text)
    assert found == meant
    assert type(found) is type(meant)


@settings(deadline=None)
@given(st.text() | st.sampled_from(["1e-3", "no", "~", "TRUE", " x", "a: b", "#", "\u2028", "\x85", "a\nb", "😀"]))
def test_text_is_written_so_that_it_is_text_when_read_here_and_by_yaml_1_1(text: str) -> None:
    written = write({"key": text})
    (pair,) = compose(written, "x").value  # type: ignore[union-attr]
    assert value(pair[1]) == text
    assert yaml.safe_load(written) == {"key": text}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x 1\nb: *x\n", "x:2:4: not YAML: aliases and tags are not used in recipes"),
        ("a: &x [*x]\n", "x:1:8: not YAML: aliases and tags are not used in recipes"),
        ("a: !!int '5'\n", "x:1:4: not YAML: aliases and tags are not used in recipes"),
        ("a: !!python/name:os.system\n", "x:1:4: not YAML: aliases and tags are not used in recipes"),
        ("a: 1\n---\nb: 1\n", "x:2:1: not YAML: expected a single document in the stream, but found another document"),
        ("a: b: c\n", "x:1:5: not YAML: mapping values are not allowed here; "
                      "put text that holds `: ` in quotes, and look at the indentation"),
        ("a:\n\tb: c\n", "x:2:1: not YAML: while scanning for the next token, found character '\\t' that cannot start "
                         "any token; indent with spaces"),
        ("a: @b\n", "x:1:4: not YAML: while scanning for the next token, found character '@' that cannot start "
                    "any token; put the text in quotes"),
        ("a:\n  \x07", "x:2: '\\x07' is not allowed in YAML; remove it"),
        ('a: "\\UFFFFFFFF"', "x: not YAML: an escape in quotes names no character; write the character"),
        ("[" * 5000, "x: nested too deep; a recipe has sections and keys, two levels"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        compose(text, "x")
    assert str(caught.value) == said
