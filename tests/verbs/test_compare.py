"""samestep compare: the verdict, and where two runs parted."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from samestep.errors import DataError
from samestep.recipe.load import dump
from samestep.recipe.machines import Run
from samestep.recipe.schema import Optimizer, Recipe
from samestep.recover.digest import of_tensors
from samestep.recover.journal import Journal
from samestep.verbs import compare as verb
from samestep.verbs.compare import Difference, as_dict, compare, first_difference, lines

RECIPE = Recipe(steps=3)
MODEL = {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.ones(2, dtype=torch.int8)}
STEPS = [{"event": "step", "step": step, "loss": 2.0 - step, "gradient_norm": 1.0, "tokens": 8} for step in range(3)]


def a_run(
    folder: Path, recipe: Recipe = RECIPE, steps: Sequence[dict[str, Any]] = STEPS, model: Any = MODEL
) -> Path:  # fmt: skip
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(recipe))
    with Journal(folder / "journal.jsonl") as journal:
        for event in ({"event": "start"}, *steps):
            journal.write(event)
    if model is not None:
        (folder / "model").mkdir()
        save_file(model, folder / "model" / "model.safetensors")
    return folder


def told(left: Path, right: Path) -> list[str]:
    """The lines of a comparison, with the folder of both left out."""
    return [line.replace(f"{left.parent}/", "") for line in lines(compare(left, right))]


def test_equal_runs_are_the_same_whatever_the_machines_were(tmp_path: Path) -> None:
    left = a_run(tmp_path / "left")
    right = a_run(tmp_path / "right", recipe=RECIPE.model_copy(update={"run": Run(replicas=3)}))
    assert compare(left, right).same
    assert told(left, right) == [
        f"left | right: the same model, {of_tensors(MODEL)}",
        "journals: 3 steps equal",
    ]


def test_what_differs_is_told_from_recipe_to_tensors(tmp_path: Path) -> None:
    other = {"a": torch.tensor([[1.0, 1, 1], [1, 1.5, 1]]), "b": torch.ones(3).bfloat16(), "d": torch.ones(1)}
    left = a_run(tmp_path / "left")
    right = a_run(
        tmp_path / "right",
        RECIPE.model_copy(update={"optimizer": Optimizer(clip=None), "seed": 2}),
        [*STEPS[:2], {**STEPS[2], "loss": 0.25, "gradient_norm": math.nan}],
        other,
    )
    assert not compare(left, right).same
    assert told(left, right) == [
        f"left | right: different models, {of_tensors(MODEL)} | {of_tensors(other)}",
        "seed: 1 | 2",
        "optimizer.clip: 1.0 | none",
        "journals: 2 steps equal, then step 2: loss 0.0 | 0.25, gradient_norm 1.0 | none",
        "a: F32 [2, 3], largest difference 0.5",
        "b: BF16 [4] | BF16 [3]",
        "c: only in left",
        "d: only in right",
    ]


def test_a_run_that_is_not_finished_is_said_and_its_steps_compared(tmp_path: Path) -> None:
    left, right = a_run(tmp_path / "left"), a_run(tmp_path / "right", steps=STEPS[:2], model=None)
    comparison = compare(left, right)
    assert not comparison.same
    assert (comparison.left_digest, comparison.right_digest) == (of_tensors(MODEL), None)
    assert told(left, right) == [
        "left | right: cannot say, not finished (no model/): right",
        "journals: 2 steps equal, then step 2 is only in left",
    ]
    assert not compare(right, right).same


def test_a_step_that_was_redone_counts_as_it_was_last(tmp_path: Path) -> None:
    left = a_run(tmp_path / "left")
    right = a_run(tmp_path / "right", steps=[STEPS[0], {**STEPS[1], "loss": 9.0}, *STEPS[1:]])
    assert compare(left, right).step is None


@pytest.mark.parametrize(
    ("dtype", "values", "largest"),
    [
        (torch.float64, (1.0, 1.0 + 2**-50), 2**-50),
        (torch.float32, (1.0, -1.0), 2.0),
        (torch.float16, (1.0, 1.5), 0.5),
        (torch.bfloat16, (1.0, 1.0078125), 0.0078125),
        (torch.float32, (0.0, -0.0), 0.0),
        (torch.float32, (1.0, math.nan), None),
        (torch.float64, (-1.7e308, 1.7e308), None),
        (torch.int32, (1, 2), None),
    ],
)
def test_the_largest_difference_is_of_the_values(tmp_path: Path, dtype: torch.dtype, values: Any, largest: Any) -> None:
    runs = []
    for name, value in zip("ab", values, strict=True):
        full = torch.zeros(7, dtype=dtype)
        full[5] = value
        runs.append(a_run(tmp_path / name, model={"w": full}))
    kind = compare(runs[0], runs[0]).tensors
    assert kind == ()
    (found,) = compare(*runs).tensors
    assert found.largest == largest
    assert told(*runs)[-1].endswith("other bits" if largest is None else f"largest difference {largest:.3g}")


def test_a_difference_in_the_last_piece_of_a_tensor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samestep.recover.stored.PIECE", 16)
    ones = torch.ones(9)
    left, right = (
        a_run(tmp_path / "a", model={"w": ones}),
        a_run(tmp_path / "b", model={"w": ones + ones.cumsum(0) // 9}),
    )
    assert compare(left, right).tensors == (Difference("w", "F32 [9]", "F32 [9]", 1.0),)


def test_a_long_list_of_tensors_is_cut_on_the_terminal_only(tmp_path: Path) -> None:
    left = a_run(tmp_path / "left", model={f"w{index:02}": torch.zeros(1) for index in range(13)})
    right = a_run(tmp_path / "right", model={f"w{index:02}": torch.ones(1) for index in range(13)})
    assert told(left, right)[-2:] == ["w09: F32 [1], largest difference 1", "... and 3 more tensors"]
    assert len(as_dict(compare(left, right))["tensors"]) == 13


def test_the_dict_is_json(tmp_path: Path) -> None:
    left, right = (
        a_run(tmp_path / "left"),
        a_run(tmp_path / "right", steps=STEPS[:1], model={"a": MODEL["a"] * math.inf}),
    )
    shown = json.loads(json.dumps(as_dict(compare(left, right)), allow_nan=False))
    assert (shown["same"], shown["equal_steps"], shown["step"]) == (False, 1, 1)
    assert shown["tensors"][0] == {"name": "a", "left": "F32 [2, 3]", "right": "F32 [2, 3]", "largest": None}


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    left = a_run(tmp_path / "left")
    with pytest.raises(DataError, match=r"model is no run folder, it has no recipe\.yaml"):
        compare(left, left / "model")
    with pytest.raises(DataError, match=r"lefd does not exist; did you mean left\?"):
        compare(left, tmp_path / "lefd")


steps = st.dictionaries(
    st.integers(0, 5),
    st.fixed_dictionaries({"loss": st.sampled_from([1.0, 2.0, None])}, optional={"digest": st.just("x")}),
)


@settings(deadline=None)
@given(steps, steps)
def test_the_first_difference_is_where_equality_ends(left: dict[int, Any], right: dict[int, Any]) -> None:
    equal, step, apart = first_difference(left, right)
    before = sorted(left.keys() | right.keys())[:equal]
    assert all(left[each]["loss"] == right[each]["loss"] for each in before)
    if step is None:
        assert left.keys() == right.keys() == set(before)
    else:
        assert apart
        assert step not in left or step not in right or left[step]["loss"] != right[step]["loss"]


def test_a_digest_counts_only_where_both_runs_took_one() -> None:
    taken, other, none = ({0: {"loss": 1.0, **more}} for more in ({"digest": "x"}, {"digest": "y"}, {}))
    assert first_difference(taken, none) == (1, None, ())
    assert first_difference(taken, other) == (0, 0, (Difference("digest", "x", "y"),))


def test_comparing_imports_neither_torch_nor_transformers() -> None:
    code = f"import sys, {verb.__name__}; print(sorted({{'torch', 'numpy', 'transformers'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_a_verdict_is_of_the_digests_alone(tmp_path: Path) -> None:
    left, right = a_run(tmp_path / "left"), a_run(tmp_path / "right", steps=STEPS[:1])
    comparison = compare(left, right)
    assert comparison.same
    assert lines(replace(comparison, same=False))[0] != lines(comparison)[0]
