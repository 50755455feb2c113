"""samestep plan: a table before anything is rented."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from samestep.errors import RecipeError
from samestep.plan import facts
from samestep.recipe.load import load
from samestep.recipe.schema import Lora
from samestep.verbs.plan import Asked, as_dict, bandwidth, lines, of_recipe, plan

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "tests" / "plan" / "models" / "llama-3-8b"
WIDE = Asked(gpus=["H100"], replicas="8,16,32,64,128,256,512,1024")
RECIPE = "steps: 100\nlanes: 8\nmodel: {layers: 2, width: 64, vocabulary: 512}\ndata: {context: 64}\n"


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_the_table_of_llama_3_8b_on_8_to_1024_h100_is_the_one_that_is_kept():
    """Made by: samestep plan tests/plan/models/llama-3-8b --gpu H100 --replicas 8,16,32,64,128,256,512,1024"""
    found = plan(LLAMA, [], WIDE)
    kept = (LLAMA / "plan.txt").read_text().splitlines()
    assert lines(found)[1:] == kept[1:]  # the first names the folder


def test_it_answers_within_a_second():
    code = (
        "import sys, time; start = time.process_time()\n"
        "from samestep.verbs.plan import *\n"
        f"plan(Path({str(LLAMA)!r}), [], Asked(['H100'], '8,16,32,64,128,256,512,1024'))\n"
        "assert 'torch' not in sys.modules\n"
        "print(time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1


def test_a_recipe_is_planned_with_its_own_step(recipe):
    found = plan(recipe, [], Asked(replicas="1,2,8"))
    assert found.tokens == 100 * 8 * 4 * 64 and found.step_tokens == 8 * 4 * 64
    assert [row.gpus for row in found.rows] == [1, 2, 8] * 2 and all(row.own for row in found.rows)
    assert all(row.training.micro_batch == 4 for row in found.rows)


def test_numbers_of_gpus_end_with_the_shares_of_a_step(recipe):
    assert {row.gpus for row in plan(recipe, [], Asked()).rows} == {1, 2, 4, 8}
    assert [row.fits for row in plan(recipe, [], Asked(["H100"], "8,16")).rows] == [True, False]


def test_what_does_not_fit_is_told_with_what_would_help():
    found = plan(LLAMA, [], Asked(["A100-40GB"], "1,8"))
    text = "\n".join(lines(found))
    assert "does not fit" in text and "1 A100-40GB: as asked a GPU needs" in text
    assert "full sharding with checkpointing and micro-batch 1" in text


def test_tune_or_train_stand_side_by_side(recipe):
    text = "\n".join(lines(plan(recipe, [], Asked())))
    for words in ("tune all weights", "tune LoRA 16", "train from scratch", "tune: 205 k tokens are"):
        assert words in text


def test_lora_in_a_recipe_is_planned_as_lora(recipe):
    full = load(recipe)
    adapted = full.model_copy(update={"model": full.model.model_copy(update={"lora": Lora(rank=8)})})
    shape = facts.of_model(full.model, recipe.parent)
    assert of_recipe(adapted, shape, Asked()).training.rank == 8
    assert of_recipe(full, shape, Asked()).training.rank == 0


def test_a_slower_network_is_slower():
    fast, slow = (
        plan(LLAMA, [], Asked(["H100"], "64", rate)).rows[0].tokens_per_second for rate in ("3200gbit", "10gbit")
    )
    assert slow < 0.7 * fast


def test_json_holds_everything(recipe):
    found = json.loads(json.dumps(as_dict(plan(recipe, [], Asked(["H100"], "1")))))
    assert {"rows", "marks", "prices", "ways", "advice", "assumed"} <= set(found)
    assert {"memory", "step", "mfu", "efficiency", "hours", "dollars", "stops"} <= set(found["rows"][0])


@pytest.mark.parametrize(
    ("change", "asked", "says"),
    [
        (["epochs=3"], Asked(), "trains for 3 epochs, whose tokens plan does not count; give --tokens N"),
        ([], Asked(["here", "H100"]), "--gpu here is planned from what a pilot has measured, beside no other"),
        ([], Asked(["TPU"]), "--gpu TPU is not known"),
        ([], Asked(replicas="0,x"), "--replicas 0,x is no list"),
        ([], Asked(interconnect="fast"), "--interconnect fast is no rate"),
        ([], Asked(context=128), "--context and --batch are for a model"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(recipe, change, asked, says):
    with pytest.raises(RecipeError, match=says):
        plan(recipe, change, asked)


def test_tokens_of_the_command_line_come_first(recipe):
    assert plan(recipe, ["epochs=3"], Asked(tokens=5e6)).tokens == 5e6


def test_a_step_of_less_than_a_row_is_refused():
    with pytest.raises(RecipeError, match="--batch 100 is less than one row of 8192 tokens"):
        plan(LLAMA, [], Asked(batch=100))


@pytest.mark.parametrize(
    ("text", "rate"), [("400gbit", 50e9), ("25 Gbps", 25e9 / 8), ("800Gb/s", 100e9), ("10GB/s", 10e9), ("1tbit", 125e9)]
)
def test_rates_are_bits_or_bytes(text, rate):
    assert bandwidth(text) == rate
