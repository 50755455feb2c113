"""Published runs as people write them."""

import pytest

from samestep.plan import setting
from samestep.plan.devices import device
from samestep.plan.published import Run, run, runs

LLAMA = {
    "source": "somebody/trainer",
    "model": "Llama-3-8B",
    "seq_len": "8192",
    "gpu": "H100 80GB",
    "gpus": "64",
    "gpus_per_node": "8",
    "strategy": "FSDP",
    "precision": "bf16",
    "micro_batch": "1",
    "tokens_per_s_per_gpu": "6000",
    "activation_ckpt": "full",
    "notes": "",
}


def read(**cells):
    found = run(LLAMA | cells)
    assert isinstance(found, Run), found
    return found


def test_a_name_and_a_speed_are_enough():
    found = read()
    assert found.facts.parameters == pytest.approx(8.03e9, rel=1e-3) and found.speed == 64 * 6000
    assert (found.training.stage, found.training.replicas, found.training.checkpointing) == (3, 64, "full")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"gpu": "TPU v4"}, "unknown GPU TPU v4"),
        ({"gpu": ""}, "unknown GPU (none)"),
        ({"model": "Mixtral-8x7B"}, "a mixture of experts has no one width"),
        ({"model": "T5-large"}, "an encoder with a decoder is not modelled"),
        ({"tokens_per_s_per_gpu": ""}, "neither tokens/s nor memory"),
        ({"seq_len": ""}, "no seq_len"),
        ({"model": "our-own"}, "no shape: neither n_layers and d_model nor a known model"),
        ({"tokens_per_s_per_gpu": "60000"}, "of the GPU's peak, which cannot be"),
    ],
)
def test_what_cannot_be_used_says_why(cells, reason):
    assert reason in run(LLAMA | cells)


@pytest.mark.parametrize(
    ("strategy", "stage", "tensor", "pipeline"),
    [
        ("DDP", 0, 1, 1),
        ("DP (Horovod all-reduce)", 0, 1, 1),
        ("DeepSpeed ZeRO-1", 1, 1, 1),
        ("ZeRO-2", 2, 1, 1),
        ("zero3", 3, 1, 1),
        ("FSDP2 + TP=8", 3, 8, 1),
        ("TP8 PP4 DP2", 0, 8, 4),
        ("3D: tensor parallel 4, pipeline parallel 2", 0, 4, 2),
        ("8-way tensor, 2-way pipeline", 0, 8, 2),
        ("TP size=2, distributed optimizer", 1, 2, 1),
    ],
)
def test_strategies_are_understood(strategy, stage, tensor, pipeline):
    training = read(strategy=strategy).training
    assert (training.stage, training.tensor, training.pipeline) == (stage, tensor, pipeline)


@pytest.mark.parametrize(
    ("precision", "product", "weight", "moments"),
    [
        ("bf16", "bf16", 2, 12),
        ("amp_fp16", "fp16", 4, 8),
        ("bf16-mixed", "bf16", 4, 8),
        ("bf16-true", "bf16", 2, 4),
        ("FP8 (TE)", "fp8", 2, 12),
        ("TF32", "tf32", 4, 8),
        ("fp32", "fp32", 4, 8),
        ("", "bf16", 2, 12),
    ],
)
def test_precisions_are_understood(precision, product, weight, moments):
    training = read(precision=precision, tokens_per_s_per_gpu="500").training
    assert (training.product, training.weight, training.moments) == (product, weight, moments)


def test_gaps_are_filled_by_what_fits():
    found = read(micro_batch="", activation_ckpt="?", global_batch_tokens="1,048,576").training
    assert found.micro_batch * found.accumulate == 2 and found.checkpointing in ("none", "full")
    tight = read(gpu="A100-40GB", gpus="8", seq_len="2048", activation_ckpt="", micro_batch="16")
    assert tight.training.checkpointing == "full"


def test_accumulation_comes_from_the_batch_or_the_notes():
    assert read(global_batch_tokens=str(64 * 8192 * 4)).training.accumulate == 4
    assert read(notes="grad_accum=7").training.accumulate == 7
    assert read().training.accumulate == 1


def test_parameters_tell_what_the_shape_leaves_open():
    cells = {"model": "x", "n_layers": "32", "d_model": "4096", "n_heads": "32", "d_ff": "11008", "vocab": "32000"}
    llama = read(**cells, params_b="6.74").facts
    assert llama.gated and not llama.tied
    gpt = read(**(cells | {"d_ff": ""}), params_b="6.66").facts
    assert 6.6e9 < gpt.parameters < 6.7e9


def test_links_and_networks_are_read():
    assert read(interconnect="8x400Gb/s InfiniBand").training.network == 400e9
    assert read(interconnect="NVLink intra; 1600 Gbps node-node RoCE").training.network == 200e9
    assert read(interconnect="").training.network == device("H100").network
    staged = read(gpu="RTX 4090", interconnect="PCIe, NCCL_P2P_DISABLE=1", tokens_per_s_per_gpu="500")
    assert staged.device.link == 3e9


@pytest.mark.parametrize(
    ("notes", "kernels", "flash"),
    [
        ("", "eager", True),
        ("torch.compile", "compiled", True),
        ("TF2+Horovod", "graph", False),
        ("no flash", "eager", False),
    ],
)
def test_software_is_read_from_the_notes(notes, kernels, flash):
    training = read(notes=notes).training
    assert (training.kernels, training.flash) == (kernels, flash)


def test_adapters_are_read():
    training = read(strategy="QLoRA", notes="rank 64", gpus="1").training
    assert (training.rank, training.quantised) == (64, True)


def test_techniques_that_add_up_are_kept_from_row_to_row():
    note = "cumulative technique stack: "
    rows = [LLAMA | {"notes": note + words} for words in ("+compile", "+optimizer in backward")]
    rows = [row | {"strategy": "single-device full finetune", "gpus": "1", "gpu": "H200"} for row in rows]
    first, second = runs(rows)
    assert first.training.kernels == second.training.kernels == "compiled"
    assert not first.training.early and second.training.early


def test_numbers_are_read_as_people_write_them():
    cells = {"a": "1,024", "b": "8.03B", "c": "~70", "d": "", "e": "2e6"}
    from samestep.plan.published import number

    assert [number(cells, key) for key in "abcdef"] == [1024, 8.03, 70, None, 2e6, None]
    assert setting.degree("tp=8, pp=2", "pp") == 2
