"""GPUs as nvidia-smi tells of them, and whether the torch here can use them."""

import csv
import shutil
import subprocess
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from samestep import units
from samestep.launch.health.finding import Finding, Need, failure, looked, warning
from samestep.launch.health.libraries import Facts

PATIENCE = 10.0  # seconds; it hangs with a driver that does
FIELDS = "index,name,driver_version,memory.total,memory.used,compute_mode,ecc.errors.uncorrected.volatile.total"
BUSY = 0.05  # of the memory, in other programs' hands

# The oldest Linux driver for each CUDA: NVIDIA, "CUDA Toolkit Release Notes", table of minor version compatibility.
OLDEST = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}


class Device(NamedTuple):
    """total, used: bytes. errors: in memory since the last start that ECC could not correct; None: no ECC."""

    number: str
    name: str
    driver: str
    total: int
    used: int
    mode: str
    errors: int | None


class Seen(NamedTuple):
    """reason: why nvidia-smi has told of none, though it is there."""

    devices: tuple[Device, ...] = ()
    reason: str = ""


def read() -> Seen:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Seen()
    command = [program, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Seen(reason=f"it does not answer within {PATIENCE:.0f} s")
    except OSError as error:
        return Seen(reason=str(error))
    if done.returncode:
        return Seen(reason=((done.stdout + done.stderr).strip().splitlines() or [f"code {done.returncode}"])[0])
    return Seen(tuple(map(_device, csv.reader(done.stdout.splitlines(), skipinitialspace=True))))


def _device(row: list[str]) -> Device:
    index, name, driver, total, used, mode, errors = (field.strip() for field in row)
    return Device(index, name, driver, _mega(total), _mega(used), mode, int(errors) if errors.isdecimal() else None)


def _mega(text: str) -> int:
    return int(text) << 20 if text.isdecimal() else 0


def judge(seen: Seen, torch: Facts, need: Need) -> list[Finding]:
    """torch: as libraries.look found it. All are warnings where the recipe is not for GPUs: processors train too."""
    lacking = "torch" in torch and not torch.get("cuda")
    if need.cuda and (lacking or not seen.devices):
        what = f"torch {torch['torch']} was built without CUDA" if lacking else seen.reason or "there is no GPU here"
        fix = "use a machine with a GPU and a torch for its CUDA, or set compute.device: cpu"
        return [failure("gpu", f"the recipe's compute.device is cuda, but {what}", fix)]
    if seen.reason:
        what = f"nvidia-smi is here, but tells of no GPU: {seen.reason}"
        return [warning("gpu", what, "install the driver anew, or restart the machine (dmesg | grep -i nvrm)")]
    each = [finding for device in seen.devices for finding in _one(device)]
    shown = ", ".join(f"{device.name} ({units.size(device.total)})" for device in seen.devices) or "none"
    return looked("gpu", shown, [*_driver(seen, torch), *_kinds(seen), *each])


def _driver(seen: Seen, torch: Facts) -> list[Finding]:
    cuda = torch.get("cuda")
    if seen.devices and "torch" in torch and not cuda:
        what = f"{len(seen.devices)} GPUs are here, but torch {torch['torch']} was built without CUDA"
        return [warning("gpu", what, "pip install torch with the index of pytorch.org for your CUDA")]
    if cuda and not seen.devices:
        what = f"torch {torch['torch']} was built for CUDA {cuda}, but there is no driver or GPU here"
        return [warning("gpu", what, "nothing, to train on processors; else install the driver (nvidia-smi tells)")]
    oldest = OLDEST.get(str(cuda).partition(".")[0])
    if seen.devices and oldest and _older(seen.devices[0].driver, oldest):
        what = f"driver {seen.devices[0].driver} is too old for CUDA {cuda} of torch {torch['torch']}"
        return [warning("gpu", what, f"install driver {oldest} or newer, or a torch for an older CUDA")]
    return []


def _older(driver: str, oldest: str) -> bool:
    try:
        return Version(driver) < Version(oldest)
    except InvalidVersion:
        return False


def _kinds(seen: Seen) -> list[Finding]:
    names = sorted({device.name for device in seen.devices})
    if len(names) < 2:
        return []
    what = f"GPUs of {len(names)} kinds are here ({', '.join(names)}), and replicas of one run must have the same"
    return [warning("gpu", what, "choose those of one kind: CUDA_VISIBLE_DEVICES")]


def _one(device: Device) -> list[Finding]:
    name, found = f"GPU {device.number} ({device.name})", []
    if device.mode in ("Prohibited", "Exclusive_Process"):
        what = f"{name} is in compute mode {device.mode}: {_MODES[device.mode]}"
        found.append(warning("gpu", what, f"nvidia-smi -i {device.number} -c DEFAULT"))
    if device.used > BUSY * device.total:
        what = f"{units.size(device.used)} of {units.size(device.total)} of {name} are used by other programs"
        found.append(warning("gpu", what, "end them: nvidia-smi lists their processes"))
    if device.errors:
        what = f"{name} has {device.errors} errors of memory since its start that ECC could not correct"
        found.append(warning("gpu", what, f"nvidia-smi -i {device.number} --gpu-reset; replace it if they come again"))
    return found


_MODES = {"Prohibited": "no program can compute on it", "Exclusive_Process": "one process can compute on it at a time"}
