"""What a model over several processes of a replica goes together with."""

from typing import Any

import pytest

from samestep.errors import RecipeError
from samestep.recipe.schema import Recipe

FULL, TENSOR = {"shard": "full", "shards": 2}, {"shard": "tensor", "shards": 3}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"steps": 1} | sections)


@pytest.mark.parametrize("compute", [FULL, TENSOR, {}])
@pytest.mark.parametrize("kind", ["causal", "sft"])
def test_language_models_in_float32_sums_are_split(compute: dict[str, Any], kind: str) -> None:
    assert recipe(compute=compute, objective={"kind": kind}).compute.shards == compute.get("shards", 1)


@pytest.mark.parametrize("compute", [{"shard": "full"}, {"shards": 2}])
def test_one_key_without_the_other_is_refused(compute: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"compute.shard is \w+ and compute.shards is \d; set both, or neither"):
        recipe(compute=compute)


def test_rows_that_do_not_divide_are_refused_where_they_are_divided() -> None:
    with pytest.raises(ValueError, match=r"micro_batch is 3 rows, which compute.shards 2 cannot share evenly"):
        recipe(compute=FULL, batch={"micro_batch": 3})
    recipe(compute=TENSOR, batch={"micro_batch": 2})


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("sync.strategy", {"sync": {"strategy": "fast"}}),
        ("sync.strategy", {"sync": {"strategy": "auto"}}),
        ("sync.wire", {"sync": {"wire": "int8"}}),
        ("sync.wire", {"sync": {"weights": "bfloat16"}}),
        ("objective.kind", {"objective": {"kind": "dpo"}}),
        ("model.lora", {"model": {"path": "m", "lora": {}}}),
        ("compute.compile", {"compute": FULL | {"compile": True}}),
        ("recover.recompute_every", {"recover": {"recompute_every": 5}}),
        ("run.hosts", {"run": {"hosts": {"h0": {"address": "10.77.0.1"}}}}),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(key: str, sections: dict[str, Any]) -> None:
    recipe(**sections | {"compute": {}})
    with pytest.raises(ValueError, match=rf"compute.shard full does not go together with this {key}; leave one"):
        recipe(**{"compute": FULL} | sections)


def test_verbs_that_know_replicas_of_one_process_only_say_so() -> None:
    recipe().refuse_shards("samestep plan")
    with pytest.raises(RecipeError, match=r"samestep plan is for replicas of one process, but compute\.shard is full"):
        recipe(compute=FULL).refuse_shards("samestep plan")
