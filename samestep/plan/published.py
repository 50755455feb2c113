"""A published run as the planner sees it: a row of a CSV file, its cells as they were written, its gaps filled."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml

from samestep.plan import memory, setting, steptime
from samestep.plan.devices import Device, named
from samestep.plan.facts import MASKED, Facts
from samestep.plan.training import Training

MODELS = Path(__file__).with_name("models.yaml")
VOCABULARY = 50304  # where neither the row nor its parameters say another
HEAD = 128  # the usual width of one
OF_MEMORY = 0.9  # that a micro-batch which nobody states is thought to fill
NOT_PLANNED = {
    r"\bmoe\b|mixtral|experts|\d+x\d+b\b|\ba\d+b\b|switch-": "a mixture of experts has no one width",
    r"transformer-?xl": "its memory of earlier segments and adaptive softmax are not modelled",
    r"\bt5\b|enc-?dec|\bbart\b": "an encoder with a decoder is not modelled",
    r"mamba|rwkv|hyena": "no transformer",
    r"vit\b|resnet|diffusion|unet|whisper": "no language model",
}

Row = Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """speed: tokens a second of all GPUs; held: bytes; None where they were not published. key: source, GPU and
    precision, of which one run is a pilot for the others."""

    row: Row
    device: Device
    facts: Facts
    training: Training
    speed: float | None
    held: float | None
    key: tuple[str, str, str]


def runs(rows: Sequence[Row]) -> list[Run | str]:
    """Of each row its run, or why it cannot be used."""
    found: list[Run | str] = []
    stack = ""
    for row in rows:
        stack = f"{stack} {row['notes']}" if "cumulative" in row.get("notes", "") else ""
        found.append(run({**row, "notes": stack or row.get("notes", "")}))
    return found


def run(row: Row) -> Run | str:
    """The run of one row, or in a few words why there is none."""
    device = device_of(row)
    if device is None:
        return f"unknown GPU {_cell(row, 'gpu') or '(none)'}"
    reason = next((why for mark, why in NOT_PLANNED.items() if re.search(mark, _cell(row, "model").lower())), None)
    if reason:
        return reason
    gpus = int(number(row, "gpus") or 1)
    each = number(row, "tokens_per_s_per_gpu")
    speed = number(row, "tokens_per_s_total") or (each * gpus if each else None)
    held = number(row, "peak_mem_gib_per_gpu")
    if not (speed or held):
        return "neither tokens/s nor memory"
    if not number(row, "seq_len"):
        return "no seq_len"
    facts = facts_of(row)
    if facts is None:
        return "no shape: neither n_layers and d_model nor a known model"
    device, training = settled(device, facts, row, gpus)
    if speed and (share := steptime.utilisation(device, facts, training, speed)) > 1:
        return f"its tokens/s are {share:.0%} of the GPU's peak, which cannot be"
    key = (_cell(row, "source"), _cell(row, "gpu"), _cell(row, "precision"))
    return Run(row, device, facts, training, speed, held * 2**30 if held else None, key)


def _cell(row: Row, name: str) -> str:
    return (row.get(name) or "").strip()


def number(row: Row, name: str) -> float | None:
    """The first number of a cell, such as 1,024 or 8.03B; None where there is none above 0."""
    found = re.search(r"\d[\d,]*\.?\d*(?:e[+-]?\d+)?", _cell(row, name).lower())
    value = float(found[0].replace(",", "")) if found else 0.0
    return value if value > 0 else None


def device_of(row: Row) -> Device | None:
    """The GPU of a row. Where its memory is not said it is the one that the published peak fits."""
    found = named(_cell(row, "gpu"))
    if found is None or not found.name.startswith("V100"):
        return found
    place = f"{row.get('gpu')} {row.get('source_location')} {row.get('interconnect')} {row.get('notes')}".lower()
    mark = re.search(r"dgx-?\s?2(h?)", place)
    return named(f"V100-DGX2{mark[1]}") if mark else found


def facts_of(row: Row) -> Facts | None:
    """The shape: from the cells, then from the name, then from the number of parameters."""
    known = _known(_cell(row, "model"))
    layers, width = number(row, "n_layers"), number(row, "d_model")
    if layers and width:
        facts = _from_cells(row, int(layers), int(width))
    elif known:
        facts = known
    else:
        return None
    encoder = re.search(r"bert|electra", _cell(row, "model").lower())
    if encoder:
        return replace(facts, causal=False, predicted=MASKED, dropout=True)
    return replace(facts, dropout="gpt-2" in _cell(row, "model").lower())


def _from_cells(row: Row, layers: int, width: int) -> Facts:
    heads = int(number(row, "n_heads") or max(1, width // HEAD))
    keys = int(number(row, "n_kv_heads") or heads)
    vocabulary = int(number(row, "vocab") or VOCABULARY)
    billions = number(row, "params_b")
    bare = Facts(layers, width, heads, keys, max(1, width // heads), int(number(row, "d_ff") or 0), vocabulary)
    if not bare.inner:
        bare = replace(bare, inner=_inner(bare, billions))
    if not billions:
        return replace(bare, gated=bare.inner % width != 0 or bare.inner > 4 * width)
    shapes = [replace(bare, tied=tied, gated=gated) for tied in (True, False) for gated in (False, True)]
    return min(shapes, key=lambda one: abs(math.log(one.parameters / (billions * 1e9))))


def _inner(bare: Facts, billions: float | None) -> int:
    """The width of the MLP that the parameters leave, as of two matrices."""
    if not billions:
        return 4 * bare.width
    left = billions * 1e9 - bare.parameters
    return max(bare.width, round(left / (2 * bare.width * bare.layers)))


@cache
def _models() -> dict[str, Facts]:
    table = yaml.safe_load(MODELS.read_text())
    return {name: Facts(*fields) for name, fields in table.items()}


def _known(model: str) -> Facts | None:
    plain = re.sub(r"[\s\-_.]+", "", model.lower())
    names = [name for name in _models() if name in plain]
    return _models()[max(names, key=len)] if names else None


def settled(device: Device, facts: Facts, row: Row, gpus: int) -> tuple[Device, Training]:
    """The device with the links that the row tells of, and the training with what it does not tell filled in."""
    said = setting.said(row)
    device = replace(device, link=setting.link(row, device))
    context = int(number(row, "seq_len") or 0)
    base = setting.training(row, said, device, context, gpus)
    micro, whole = number(row, "micro_batch"), number(row, "global_batch_tokens")
    share = whole / context / base.replicas if whole else None
    if micro is None:
        base = replace(base, micro_batch=_largest(device, facts, base, share))
    else:
        base = replace(base, micro_batch=max(1, round(micro)))
    often = setting.accumulation(said)
    if share:
        often = share / base.micro_batch
    return device, _checkpointed(device, facts, replace(base, accumulate=max(1, round(often or 1))), said)


def _largest(device: Device, facts: Facts, base: Training, share: float | None) -> int:
    """The most rows, a power of two, that fit and divide a replica's share of the batch; 16 where none is known."""
    most = share or 16.0
    sizes = [2**power for power in range(int(math.log2(max(1.0, most))) + 1)]
    sizes = [size for size in sizes if share is None or share % size < 1e-6] or [1]
    roomy = replace(device, memory=OF_MEMORY * device.memory)
    fitting = [size for size in sizes if memory.fits(roomy, facts, replace(base, micro_batch=size))]
    return max(fitting, default=1)


def _checkpointed(device: Device, facts: Facts, base: Training, said: str) -> Training:
    """What a row does not say of checkpointing: none where that fits, else full."""
    if base.checkpointing != "?":
        return base
    kept = replace(base, checkpointing="none")
    return kept if not base.offload and memory.fits(device, facts, kept) else replace(base, checkpointing="full")
