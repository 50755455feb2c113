"""What GPUs can do, from devices.yaml, and which of them a name means."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from samestep.errors import RecipeError

FILE = Path(__file__).with_name("devices.yaml")
SHARE = 0.8  # of its peak that the best matrix product reaches where nobody has measured: as A100 PCIe and H100 SXM
BELOW = {"bf16": "fp16", "fp8": "bf16", "tf32": "fp32"}  # what a device computes in that lacks a dtype


@dataclass(frozen=True)
class Device:
    """memory: bytes. bandwidth, link, network: bytes a second (link: each way, of one GPU; network: of a host). peak,
    ceiling: FLOP/s of matrix products by dtype, as advertised and as measured.
    """

    name: str
    memory: float
    bandwidth: float
    units: int
    link: float
    switched: bool
    host: int
    network: float
    flash: bool
    peak: Mapping[str, float]
    ceiling: Mapping[str, float]
    source: str

    def computes(self, dtype: str) -> str:
        """The dtype of the matrix products where `dtype` is asked for."""
        while dtype not in self.peak:
            dtype = BELOW[dtype]
        return dtype


@cache
def devices() -> dict[str, Device]:
    """All of devices.yaml by name."""
    return {name: _device(name, fields) for name, fields in _table().items()}


def named(text: str) -> Device | None:
    """The device that `text` names, such as `NVIDIA A100-SXM4-80GB` or `H100 80GB PCIe`; None: none is known."""
    plain = re.sub(r"sxm\d?(?=\d\dgb)", "", re.sub(r"[\s\-_/]+", "", text.lower()))
    found = [
        (len(alias), name)
        for name, fields in _table().items()
        for alias in fields["names"]
        if (alias in plain if len(alias) > 3 else re.search(rf"\b{alias}\b", text.lower()))
    ]
    return devices()[max(found)[1]] if found else None


def device(text: str) -> Device:
    """The device that `text` names; RecipeError where none does."""
    found = named(text)
    if found is None:
        raise RecipeError(f"--gpu {text} is not known; known are {', '.join(devices())}")
    return found


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())
    return table


def _device(name: str, fields: dict[str, Any]) -> Device:
    peak = {dtype: 1e12 * teraflops for dtype, teraflops in fields["peak"].items()}
    measured = {dtype: 1e12 * teraflops for dtype, teraflops in _ceilings(fields).items()}
    share = measured["bf16"] / peak["bf16"] if "bf16" in measured else SHARE
    return Device(
        name=name,
        memory=fields["memory"] * 2**30,
        bandwidth=fields["bandwidth"] * 1e9,
        units=fields["units"],
        link=fields["link"] * 1e9,
        switched=fields["switched"],
        host=fields["host"],
        network=fields["network"] * 1e9 / 8,
        flash=fields["flash"],
        peak=peak,
        ceiling={dtype: measured.get(dtype, share * peak[dtype]) for dtype in peak},
        source=fields["source"],
    )


def _ceilings(fields: dict[str, Any]) -> dict[str, float]:
    ceilings: dict[str, float] = fields.get("ceiling") or fields.get("estimate") or {}
    return ceilings
