"""The audit proves something of the data that the run began with, and of no other."""

from pathlib import Path

import pytest

from samestep.errors import DataError
from samestep.recipe.load import dump
from samestep.recover.journal import Journal
from samestep.verbs.audit import audit, clean
from samestep.verbs.prepare import prepare
from samestep.verbs.train import opening

RECIPE = Path("recipes/tiny.yaml").resolve()


def begun(run: Path, **changed: object) -> Path:
    """A run before its first step, whose journal says other things of its data where asked to."""
    prepared = prepare(RECIPE, [], lambda line: None)
    run.mkdir()
    (run / "recipe.yaml").write_text(dump(prepared.recipe))
    with Journal(run / "journal.jsonl") as written:
        written.write(opening(prepared, 0.0) | changed)
    return run


def test_a_run_before_its_first_step_has_lost_nothing(tmp_path: Path) -> None:
    found = audit(begun(tmp_path / "run"), lambda line: None)
    assert clean(found) and found.steps == 0


@pytest.mark.parametrize(("key", "was"), [("rows", 7), ("rows_digest", "other"), ("steps", 7)])
def test_other_data_than_the_run_began_with_are_refused(tmp_path: Path, key: str, was: object) -> None:
    run = begun(tmp_path / "run", **{key: was})
    with pytest.raises(DataError, match=f"began with {key} {was}, now it is .*: its data have changed; restore them"):
        audit(run, lambda line: None)


def test_another_recipe_than_the_run_began_with_is_refused(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 7", "seed: 8"))
    with pytest.raises(DataError, match=r"recipe.yaml is not what the run began with \(its digest differs\)"):
        audit(run, lambda line: None)
