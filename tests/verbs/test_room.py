"""The bytes of the moments are known before a model is built, from the recipe or from the headers of its files."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from samestep.model import backend, optim
from samestep.recipe.schema import Model, Optimizer, Recipe
from samestep.replica.job import copies
from samestep.verbs import room
from samestep.verbs.room import free, held, moments, trained


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("width", "heads"), [(64, 2), (96, None), (200, 5)])
def test_the_weights_of_the_built_in_model_are_counted(tied: bool, width: int, heads: int | None) -> None:
    recipe = Recipe(steps=1, model={"layers": 3, "width": width, "heads": heads, "tied": tied})
    module = backend.build(recipe, None, Path(), 700, 0).module
    assert trained(recipe.model, Path(), 700) == sum(weights.numel() for weights in module.parameters())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_each_rule_has_its_number_of_moments(kind: str) -> None:
    assert room.MOMENTS[kind] == optim.rule(Optimizer(kind=kind)).moments
    recipe = Recipe(steps=1, optimizer={"kind": kind})
    assert moments(recipe, Path(), 700) == 4 * room.MOMENTS[kind] * (trained(recipe.model, Path(), 700) or 0)


def folder(path: Path) -> Path:
    shapes = {"embed.weight": (50, 8), "a.weight": (8, 24), "norm.weight": (8,)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path / "model.safetensors")
    (path / "config.json").write_text('{"architectures": ["X"], "model_type": "x"}')
    return path


def test_the_weights_of_a_model_folder_are_those_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "resolve", lambda model, base: folder(tmp_path))
    assert trained(Model(path="m"), tmp_path, 0) == 50 * 8 + 8 * 24 + 8
    assert trained(Model(path="m", lora={"rank": 2}), tmp_path, 0) == 2 * (50 + 8 + 8 + 24)


def test_an_architecture_that_nobody_has_built_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["X"], "model_type": "x"}')
    assert moments(Recipe(steps=1, model={"config": "config.json"}), tmp_path, 0) is None


def test_free_memory_is_what_linux_says(tmp_path: Path) -> None:
    said = tmp_path / "meminfo"
    assert free(said) is None
    said.write_text("MemTotal:       100 kB\nMemAvailable:    40 kB\n")
    assert free(said) == 40_960


@pytest.mark.parametrize("state", ["sharded", "mirrored", "replicated"])
def test_what_the_recipe_says_is_what_is_done(state: str) -> None:
    assert held(Recipe(steps=1, sync={"state": state}), Path(), 300).state == state


def test_what_is_decided_is_a_number_of_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free", lambda: math.inf)
    recipe = Recipe(steps=1, lanes=8, run={"replicas": 2})
    found = held(recipe, Path(), 300)
    decided = recipe.model_copy(update={"sync": recipe.sync.model_copy(update={"state": found.state})})
    assert (found.state, copies(decided)) == ("replicated", 8)


@pytest.mark.parametrize("wire", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("state", ["auto", "mirrored"])
def test_what_is_rounded_off_is_with_one_replica_whatever_the_recipe_says(wire: str, state: str) -> None:
    recipe = Recipe(steps=1, lanes=8, sync={"wire": wire, "state": state})
    found = held(recipe, Path(), 300)
    assert found.state == "sharded" and f"what sync.wire {wire} rounds off" in found.reason and copies(recipe) == 1


def test_replicas_that_are_split_keep_nothing_for_each_other() -> None:
    recipe = Recipe(steps=1, run={"replicas": 2}, compute={"shard": "tensor", "shards": 2})
    found = held(recipe, Path(), 700)
    assert found.state == "sharded" and "end together" in found.reason


def test_masters_of_rounded_weights_count_as_a_moment() -> None:
    plain, rounded = (Recipe(steps=1, sync={"weights": weights}) for weights in ("float32", "int8"))
    assert moments(rounded, Path(), 700) == 3 / 2 * (moments(plain, Path(), 700) or 0)
