"""What a GPU holds at the worst moment."""

from dataclasses import replace

import pytest

from samestep.plan import memory
from samestep.plan.devices import device
from samestep.plan.facts import Facts
from samestep.plan.training import Training

LLAMA = Facts(32, 4096, 32, 8, 128, 14336, 128256, tied=False)
GIB = 2**30
PURE = Training(512, 1, accumulate=2, weight=2, gradient=2, moments=4, mixed=False)


def total(training, facts=LLAMA):
    return sum(memory.peak(facts, training).values())


def test_states_are_what_their_bytes_are():
    parts = memory.peak(LLAMA, PURE)
    assert parts["weights"] == parts["gradients"] == 2 * LLAMA.parameters
    assert parts["optimizer"] == 4 * LLAMA.parameters


@pytest.mark.parametrize(
    ("stage", "sharded"),
    [(0, ()), (1, ("optimizer",)), (2, ("optimizer", "gradients")), (3, ("optimizer", "gradients", "weights"))],
)
def test_each_stage_shards_more(stage, sharded):
    one = memory.peak(LLAMA, PURE)
    many = memory.peak(LLAMA, replace(PURE, gpus=64, stage=stage))
    for name in ("optimizer", "gradients", "weights"):
        assert (many[name] < one[name] / 8) == (name in sharded), name


def test_hybrid_sharding_holds_more_than_full_sharding_and_less_than_none():
    wide = replace(PURE, gpus=64, stage=3)
    assert total(wide) < total(replace(wide, group=8)) < total(replace(wide, stage=0))


def test_tensor_and_pipeline_parallel_cut_states_alike():
    for change in ({"tensor": 8}, {"pipeline": 8, "accumulate": 16}):
        parts = memory.peak(LLAMA, replace(PURE, gpus=8, **change))
        assert parts["optimizer"] == pytest.approx(4 * LLAMA.parameters / 8)


def test_checkpointing_keeps_a_hidden_state_a_layer():
    kept, again = PURE, replace(PURE, checkpointing="full")
    assert memory.peak(LLAMA, again)["checkpoints"] == 512 * 4096 * 2 * 32
    assert sum(memory.activations(LLAMA, again).values()) < sum(memory.activations(LLAMA, kept).values()) / 8


def test_scores_grow_with_the_square_of_the_context_and_flash_has_none():
    plain = replace(PURE, flash=False)
    short, long = (memory.layer(LLAMA, replace(plain, context=size))["scores"] for size in (512, 1024))
    assert long == 4 * short and memory.layer(LLAMA, PURE)["scores"] == 0
    assert memory.activations(LLAMA, replace(plain, checkpointing="selective"))["scores"] == 0


def test_adapters_train_little_and_four_bits_hold_less():
    lora = replace(PURE, rank=16)
    assert memory.trained(LLAMA, lora) == 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert memory.peak(LLAMA, lora)["optimizer"] < 0.02 * memory.peak(LLAMA, PURE)["optimizer"]
    quantised = memory.peak(LLAMA, replace(lora, quantised=True))["weights"]
    assert 5 * GIB < quantised < 7 * GIB  # torchtune's 8 B QLoRA peaks at 7.4 GiB in all


def test_gradients_take_the_place_of_what_backward_has_used():
    once, often = (memory.peak(LLAMA, replace(PURE, accumulate=n, context=4096)) for n in (1, 2))
    assert once["gradients"] < often["gradients"]


def test_a_loss_in_parts_never_holds_all_logits():
    whole, parts = (memory.logits(LLAMA, replace(PURE, loss=kind, context=8192)) for kind in ("plain", "parts"))
    assert parts * 32 == whole


@pytest.mark.parametrize(
    ("gpu", "fits"), [("RTX 4090", False), ("A100-40GB", False), ("A100-80GB", True), ("H200", True)]
)
def test_a_model_of_8_billion_in_pure_bf16_fits_where_65_gib_do(gpu, fits):
    assert memory.fits(device(gpu), LLAMA, PURE) == fits
