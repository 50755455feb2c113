"""What a pod asks for: enough, and not more than can be explained."""

import pytest

from samestep.errors import RecipeError
from samestep.launch import demand
from samestep.plan.facts import of_model
from samestep.recipe.load import load


def test_memory_grows_with_the_model_its_moments_and_its_rows(tiny):
    def recipe(*changes):
        return load(tiny, ["model.width=1024", "data.context=512", *changes])

    def needed(*changes):
        return demand.memory(recipe(*changes))

    plain, weights = needed(), of_model(recipe().model, tiny.parent).parameters
    assert plain > 4 * 4 * weights  # weights, gradient, two moments
    assert plain - needed("optimizer.kind=sgd") == pytest.approx(demand.MARGIN * 4 * weights)
    assert needed("batch.micro_batch=8") > plain > needed("compute.checkpointing=full")
    assert needed("model.dtype=float32") > plain
    assert needed("run.replicas=8") < plain  # fewer lanes, fewer partial sums
    assert needed("steps=500") > plain  # checkpoints are copied before they are written


def test_processors_are_the_threads_and_one(tiny):
    assert demand.processors(load(tiny, ["compute.threads=4"])) == "5"


def test_the_way_out_is_longer_than_a_save():
    assert demand.grace(0) == demand.WAY_OUT
    assert demand.grace(10.2) == demand.WAY_OUT + 21
    assert demand.saving(10**9) == 20


@pytest.mark.parametrize(("text", "size"), [("8Gi", 8 << 30), ("500M", 500_000_000), ("1.5Ki", 1536), ("7", 7)])
def test_amounts_are_read_as_kubernetes_reads_them(text, size):
    assert demand.quantity(text, "--memory") == size


@pytest.mark.parametrize("text", ["8GB", "Gi", "-1Gi", "0", "8 Gi", "", "1e9", "8gi"])
def test_other_amounts_are_refused(text):
    with pytest.raises(RecipeError, match=r"--memory is '.*', but must be an amount such as 8Gi"):
        demand.quantity(text, "--memory")
