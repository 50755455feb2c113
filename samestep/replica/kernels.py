"""What decides the bits beside the recipe: the kernels. Replicas of an exact run must have the same."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from samestep.errors import ClusterError
from samestep.wire.collective import Collective, Operation, Tag, all_gather

PROCESSOR = torch.device("cpu")
RECORD = 4096  # bytes that one replica's description may take


def describe(device: torch.device = PROCESSOR) -> dict[str, str]:
    """Device model, instruction set, thread count and versions; those of CUDA where the device is a GPU."""
    facts = {
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "onednn": str(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
        "python": platform.python_version(),
    }
    return facts | (_of_gpu(device) if device.type == "cuda" else {})


def _of_gpu(device: torch.device) -> dict[str, str]:
    return {
        "gpu": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
        "tf32": str(torch.backends.cuda.matmul.allow_tf32),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
    }


def agree(wire: Collective, mine: Mapping[str, str]) -> None:
    """Refuse a set of replicas that do not all have the same facts; the error names the first that differs."""
    raw = json.dumps(dict(mine)).encode()
    record = torch.tensor(list(raw.ljust(RECORD)), dtype=torch.uint8)
    everyone = [record.clone() for _ in range(wire.size)]
    all_gather(wire, Tag(0, Operation.AGREE), record, everyone).wait()
    _refuse_mixed([json.loads(bytes(r.tolist())) for r in everyone])


def _refuse_mixed(facts: Sequence[Mapping[str, str]]) -> None:
    for key, value in facts[0].items():
        for rank, other in enumerate(facts):
            if other.get(key) != value:
                raise ClusterError(
                    f"replica {rank} has {key} {other.get(key)}, replica 0 has {value}; the bits would differ: "
                    f"use the same everywhere or sync.strategy=fast"
                )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
