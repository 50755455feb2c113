"""Law 1 for the recipes of the real model, on shortened settings: LoRA with dropout, packing on."""

import pytest

SHORT = [
    "steps=2",
    "lanes=4",
    "batch.micro_batch=1",
    "data.context=192",
    "data.too_long=truncate",
    "evaluate.every=0",
    "evaluate.prompts=[]",
    "sample.prompt=null",
    "recover.digest_every=1",
]


HELD_OUT = {"sft": 0.0004, "lora": 0.0004, "dpo": 0.02, "reward": 0.02}  # some ten chats, some six pairs


def digest(samestep, recipe, replicas, run):
    held_out = f"data.held_out={HELD_OUT[recipe.stem]}"
    result = samestep("train", recipe, "--replicas", replicas, "--run", run, "--json", held_out, *SHORT, timeout=600)
    assert result.code == 0, result.err
    return result.json["digest"], result.json["final_loss"], result.json["held_out_loss"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["sft", "lora", "dpo", "reward"])
@pytest.mark.parametrize("counts", [(1, 3), pytest.param((1, 2, 3, 4), marks=pytest.mark.long)], ids=str)
def test_a_recipe_has_one_digest_at_any_number_of_replicas(samestep, real, name, counts, tmp_path):
    found = {n: digest(samestep, real / f"{name}.yaml", n, tmp_path / str(n)) for n in counts}
    assert len(set(found.values())) == 1, found
