"""Whether this machine has a GPU for CUDA, found out without torch and before anything is started."""

import os
from collections.abc import Mapping
from pathlib import Path

from samestep.errors import ClusterError

ROOT = Path("/")
SIGNS = ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*", "dev/dxg")  # of the driver; the last one that of WSL


def hidden(environment: Mapping[str, str]) -> bool:
    """Whether all devices are hidden from programs (CUDA Programming Guide, "CUDA Environment Variables")."""
    return environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def refuse_no_gpu(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> None:
    """ClusterError where replicas on this machine could not compute on a GPU."""
    if hidden(environment):
        what = f"CUDA_VISIBLE_DEVICES is {environment['CUDA_VISIBLE_DEVICES']!r}, which hides all; unset it"
    elif not any(path for sign in SIGNS for path in root.glob(sign)):
        what = "this machine has no NVIDIA driver's device; use a machine with a GPU"
    else:
        return
    raise ClusterError(f"compute.device is cuda, but {what}, or set compute.device=cpu (samestep doctor says more)")
