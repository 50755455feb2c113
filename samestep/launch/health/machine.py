"""What this machine is, for the top of the doctor's page and for whoever compares two of them."""

import os
import platform
from importlib import metadata
from pathlib import Path

from samestep import units
from samestep.launch.health import folder, libraries
from samestep.launch.health.devices import Seen
from samestep.launch.health.kernel import Kernel
from samestep.launch.health.limits import Limits


def facts(limits: Limits, kernel: Kernel, devices: Seen, torch: libraries.Facts, disk: folder.Facts) -> dict[str, str]:
    """In the order in which they are shown."""
    gpus = [f"{device.name} ({units.size(device.total)}, driver {device.driver})" for device in devices.devices]
    return {
        "processor": f"{_model()}, {limits.cores:g} of {limits.all_cores} cores, load {os.getloadavg()[0]:.1f}",
        "memory": f"{units.size(limits.memory)} free of {units.size(_memory())}, /dev/shm {_shm(kernel)}",
        "gpu": ", ".join(gpus) or "none",
        "kernel": f"Linux {kernel.release}",
        "python": f"{platform.python_version()}, samestep {_version('samestep')}",
        "torch": _torch(torch),
        "disk": _disk(disk),
    }


def _torch(torch: libraries.Facts) -> str:
    if "torch" not in torch:
        return "none that can be imported"
    cuda = f"CUDA {torch['cuda']}" if torch["cuda"] else "without CUDA"
    return f"{torch['torch']}, {cuda}, {torch['instructions']}"


def _disk(disk: folder.Facts) -> str:
    if "free" not in disk:
        return "not known"
    speed = f", {units.size(disk['rate'])}/s" if "rate" in disk else ""
    sync = f", a sync takes {units.duration(disk['sync'])}" if "sync" in disk else ""
    return f"{units.size(disk['free'])} free{speed}{sync} ({disk['there']})"


def _shm(kernel: Kernel) -> str:
    return "none" if kernel.shared is None else units.size(kernel.shared)


def _model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
