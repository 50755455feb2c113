"""What the words of a published run say about how it was trained. Words as people write them, so: patterns."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from samestep.plan.devices import Device
from samestep.plan.training import Training

Row = Mapping[str, str]
T = TypeVar("T")

RANK = 16  # of adapters whose rank nobody states
SHORT = 200  # positions of a sample of instructions, where each has a row of its own
PCIE, STAGED = 12e9, 3e9  # bytes a second of a GPU's way through the host, and copied through its memory; assumed
# Bytes an optimizer moves a parameter: AdamW reads four float32 and writes three; LAMB reads its update again.
PASSES = {r"\blamb\b": 44.0, r"8-?bit|adafactor|paged": 14.0, r"\bsgd\b": 16.0}
CHECKPOINTING = {
    r"^(yes|full|true|1|on|all|y|block.*|layer.*|uniform.*|gradient.*|activation.*)$": "full",
    r"sel|partial|attn|attention|core|2/3|1/2": "selective",
    r"^(no|none|false|0|off|n)$": "none",
}
# In this order: the first that is there decides.
KERNELS = {
    r"\bxla\b|\bjax\b|compile": "compiled",
    r"\btf[12]\b|tensorflow|horovod": "graph",
    r"fused|transformer kernel|megatron|\bnemo|transformer[- ]engine|liger|unsloth|apex|lightseq|colossal": "fused",
}
LOSSES = {
    r"chunked|cut cross|torchtune(?!.*cumulative)": "chunked",
    r"llm-foundry": "metered",  # its train metrics, on by default, take cross-entropy and perplexity of every batch
    r"fused (?:x?entropy|cross|loss)|xentropy|liger|unsloth|megatron|nemo\b": "fused",
}
STAGES = {
    r"fsdp|zero-?\s?3|zero stage 3|full_?\s?shard|fully shard|hsdp|hybrid_shard|zero\+\+": 3,
    r"zero-?\s?2|zero1/2|shard_grad_op|zero stage 2": 2,
    r"zero|distributed optimizer|sharded optimizer": 1,
}


def said(row: Row) -> str:
    """All that a row says in words, in lower case."""
    return " ".join(
        (row.get(name) or "").strip() for name in ("source", "strategy", "precision", "notes", "model")
    ).lower()


def training(row: Row, said: str, device: Device, context: int, gpus: int) -> Training:
    """What the words decide; the micro-batch and how often it is repeated are numbers and come later."""
    host = int(float(row.get("gpus_per_node") or 0)) or min(device.host, gpus)
    strategy = (row.get("strategy") or "").lower()
    tensor, pipeline = degree(said, "tp|tensor"), degree(said, "pp|pipeline")
    tensor *= degree(said, "cp|context")
    stage = first(STAGES, strategy) if gpus > 1 else 0
    product, widths = precision(row, said)
    rank = adapters(said)
    quantised = bool(rank) and bool(re.search(r"qlora|nf4|4-?bit|int4", said))
    told = Training(
        context=min(context, SHORT) if "unpacked" in said and "+packed" not in said else context,
        micro_batch=1,
        gpus=gpus,
        host=max(1, host),
        network=network(row, device),
        product=product,
        stage=stage or 0,
        group=host if re.search("hsdp|hybrid_shard", said) else 0,
        tensor=max(1, min(tensor, gpus)),
        pipeline=max(1, min(pipeline, gpus)),
        chunks=degree(said, "vp|vpp|interleav\\w*"),
        checkpointing=checkpointing(row, said),
        rank=rank,
        targets="attention",
        quantised=quantised,
        flash=flash(said, device, product),
        kernels=first(KERNELS, said) or "eager",
        passes=first(PASSES, said) or 28.0,
        offload="offload" in strategy,
        early=bool(re.search("optimizer in backward|memory-saving optimi[sz]er|lomo", said)) and "full" in strategy,
        loss=first(LOSSES, said) or "plain",
    )
    return replace(told, **widths)


def first(menu: Mapping[str, T], text: str) -> T | None:
    """What stands beside the first pattern that is found in `text`."""
    return next((meant for pattern, meant in menu.items() if re.search(pattern, text)), None)


def degree(said: str, names: str) -> int:
    """Of a kind of parallelism: TP8, tp=8, tensor parallel 8, TP_size: 8, 8-way tensor; 1 where it is not said."""
    before = rf"\b(?:{names})(?:[ _-]*(?:model[ _-]*)?parallel(?:ism)?|[ _-]*size|[ _-]*degree)*\s*[=:x ]?\s*(\d+)\b"
    after = rf"\b(\d+)(?:-way|x)[ -]*(?:{names})\b"
    found = re.search(before, said) or re.search(after, said)
    return max(1, int(found[1])) if found else 1


def adapters(said: str) -> int:
    if not re.search(r"lora\b|adapter", said):
        return 0
    found = re.search(r"(?:rank|\br)\s*[=: ]?\s*(\d+)", said)
    return int(found[1]) if found else RANK


def precision(row: Row, said: str) -> tuple[str, dict[str, Any]]:
    """The dtype of the products, and bytes of weights, gradients and optimizer state.

    amp keeps float32 weights and casts them; true or pure ones are rounded themselves; a plain bf16 or fp16 has
    float32 masters in the optimizer (Micikevicius et al., arXiv 1710.03740), but for fine-tuning, where it is pure.
    """
    text = (row.get("precision") or "bf16").lower()
    product = first({"fp8|float8": "fp8", "bf16|bfloat16": "bf16", "fp16|float16|half": "fp16", "tf32": "tf32"}, text)
    product = product or ("fp32" if re.search("32", text) else "bf16")
    full = "lora" not in said
    eight = bool(re.search(r"8-?bit", said)) and full
    paged = bool(re.search("memory-saving|paged", said)) and full and "fsdp" not in said
    if product in ("fp32", "tf32"):
        return product, {"weight": 4, "gradient": 4, "moments": 8, "mixed": False}
    if "pure" in text and "fsdp" in said:
        return product, {"weight": 4, "gradient": 2, "moments": 8, "mixed": False}
    if re.search("true|pure", f"{text} {said}") or (re.search("lora|finetun|fine-tun", said) and "amp" not in text):
        return product, {"weight": 2, "gradient": 2, "moments": 0 if paged else 2 if eight else 4, "mixed": False}
    if re.search("amp|mixed|autocast", text):
        return product, {"weight": 4, "gradient": 4, "moments": 2 if eight else 8, "mixed": "fsdp" not in said}
    return product, {"weight": 2, "gradient": 4 if product == "bf16" else 2, "moments": 12, "mixed": False}


def checkpointing(row: Row, said: str) -> str:
    """`?` where nothing is said."""
    text = (row.get("activation_ckpt") or "").strip().lower()
    if re.search(r"no (?:activation|gradient) (?:re-?comput|checkpoint)", said):
        return "none"
    if re.search("activation offload", said):
        return "offloaded"
    hinted = "full" if re.search(r"(?:activation|gradient) checkpointing|recomput", said) else "?"
    return first(CHECKPOINTING, text) or hinted


def flash(said: str, device: Device, product: str) -> bool:
    """Whether attention keeps no scores: not before torch 2 and not in encoders, unless it is said."""
    if re.search(r"(?:no|without|w/o) flash|eager attention|naive attention", said):
        return False
    if "flash" in said or "sdpa" in said or "xformers" in said:
        return True
    old = re.search(r"\bbert|electra|\btf[12]\b|torch[ =]?1\.|horovod|gpt-?2\b.*torch 1", said)
    return device.flash and product not in ("fp32", "tf32") and not old


def accumulation(said: str) -> float | None:
    found = re.search(r"(?:grad(?:ient)?[ _]?accum\w*|accumulate)(?: steps)?\s*[=: ]\s*(\d+)", said)
    return float(found[1]) if found else None


def link(row: Row, device: Device) -> float:
    """Bytes a second each way between the GPUs of a host."""
    text = (row.get("interconnect") or "").lower()
    if "p2p_disable" in text:
        return STAGED
    if "pcie" in text and "nvlink" not in text and "nvswitch" not in text:
        return min(device.link, PCIE)
    return device.link


def network(row: Row, device: Device) -> float:
    """Bytes a second of a host's network: `1600 Gbps`, `8x200 Gb/s`, `4x HDR`; the device's usual one if not said."""
    text = (row.get("interconnect") or "").lower()
    found = re.search(r"(?:(\d+)\s*x\s*)?(\d+)\s*(?:gbps|gb/s|gbit|g\b)", text)
    if not found or ("nvlink" in text and not re.search("node|roce|infiniband|ib|efa|ethernet", text)):
        return device.network
    rate = int(found[1] or 1) * int(found[2]) * 1e9 / 8
    per_gpu = "per gpu" in text or "/gpu" in text
    return rate * (device.host if per_gpu else 1)
