"""Whether torch and what stands beside it can be imported, tried in a process of its own.

python -m samestep.launch.health.libraries      prints what it found as JSON
"""

import importlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from samestep.launch.health.finding import Finding, Need, failure, looked, warning

PATIENCE = 60.0  # seconds; a cold disk takes long
BESIDE = "torchvision"  # transformers imports it where it is installed, and fails with it

Facts = dict[str, Any]


def requirements() -> list[Requirement]:
    """What samestep itself asks for; nothing where it runs without being installed."""
    try:
        lines = metadata.requires("samestep") or []
    except metadata.PackageNotFoundError:
        return []
    found = map(Requirement, lines)
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def versions(names: Sequence[str]) -> dict[str, str | None]:
    """None: not installed."""
    return {name: _version(name) for name in names}


def pinned(name: str) -> str | None:
    """The version of torch that a package was built for, by its own metadata."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return None
    found = [re.search(r"==\s*([\w.]+)", line) for line in lines if Requirement(line).name == "torch"]
    return next((match[1] for match in found if match), None)


def judge(
    asked: Sequence[Requirement], here: Mapping[str, str | None], built_for: str | None, tried: Facts, need: Need
) -> list[Finding]:
    """built_for: the torch that torchvision asks for. tried: what importing came to."""
    found = [finding for each in asked if (finding := _fits(each, here.get(each.name)))]
    missing = any(finding.what.startswith("torch ") and finding.level == "failure" for finding in found)
    found += [] if missing else _imported(tried)
    found += _beside(tried, built_for, need)
    return looked("packages", f"torch {here.get('torch')}, transformers {here.get('transformers')}", found)


def _fits(asked: Requirement, here: str | None) -> Finding | None:
    fix = f"pip install '{asked.name}{asked.specifier}'"
    if here is None:
        return failure("packages", f"{asked.name} is not installed", fix)
    if asked.specifier.contains(here, prereleases=True):
        return None
    lowest = [Version(each.version) for each in asked.specifier if each.operator in (">=", "==", "~=")]
    what = f"{asked.name} {here} is here, and samestep was made for {asked.specifier}"
    if lowest and Version(here) < max(lowest):
        return failure("packages", what, fix)
    return warning("packages", f"{what}; nobody has tried it", fix)


def _imported(tried: Facts) -> list[Finding]:
    if "late" in tried:
        what = f"torch is not imported within {tried['late']:.0f} s"
        return [failure("torch", what, "look at the disk that Python is on, or at what else runs here (top)")]
    if "error" in tried:
        return [failure("torch", f"torch cannot be imported ({tried['error']})", "pip install --force-reinstall torch")]
    return []


def _beside(tried: Facts, built_for: str | None, need: Need) -> list[Finding]:
    if BESIDE not in tried:
        return []
    torch, here, error = tried["torch"], tried[BESIDE], tried.get("beside_error")
    fix = f"pip uninstall {BESIDE}, which samestep does not need, or install the one made for torch {torch}"
    if error:
        what = f"{BESIDE} {here} cannot be imported beside torch {torch} ({error}), and transformers imports it"
        return [(failure if need.transformers else warning)("packages", what, fix)]
    if built_for and Version(built_for).base_version != Version(torch).base_version:
        return [warning("packages", f"{BESIDE} {here} was built for torch {built_for}, and torch {torch} is here", fix)]
    return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def look() -> Facts:
    """cuda: that torch was built for. devices: that it can use. space: bytes that were mapped at most."""
    import torch

    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "space": _peak(),
    } | _beside_here()


def _beside_here() -> Facts:
    """An operator that the compiled half did not register, or a library that it links and does not find."""
    if importlib.util.find_spec(BESIDE) is None:
        return {}
    facts: Facts = {BESIDE: _version(BESIDE)}
    try:
        importlib.import_module(BESIDE)
    except Exception as error:  # native code raises what it likes
        facts["beside_error"] = str(error).partition("\n")[0]
    return facts


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmPeak:"))


if __name__ == "__main__":
    print(json.dumps(look()))
