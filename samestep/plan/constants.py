"""The few numbers of the GPU model that no data sheet gives, from constants.yaml, which scripts/fit_planner writes."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("constants.yaml")


@dataclass(frozen=True)
class Constants:
    """sustained: share of the measured ceiling of a matrix product that lasts while a whole step heats the GPU.
    streamed: share of memory bandwidth. passes: times what is counted of elementwise passes. flash: FlashAttention's
    share of that ceiling at heads of 128; heads: the power of the head size by which less falls. launch: seconds of an
    eager kernel's launch. linked, routed: shares of the links' and the network's rate that exchanges reach. hidden:
    share of the time of computing behind which an exchange can hide; contended: of the hidden exchange that computing
    pays all the same. step: seconds of the host's own work a step. jitter: share of a step that is waited for the
    slowest at each doubling of the hosts. pressed: how much longer a step takes when memory is full.
    graph: passes of TensorFlow's graph executor, of eager
    ones. loss: times what is counted of passes over logits. ramp: inner dimension
    of a matrix product whose time the filling and draining of a tile costs.
    """

    sustained: float
    streamed: float
    passes: float
    flash: float
    heads: float
    launch: float
    linked: float
    routed: float
    hidden: float
    contended: float
    step: float
    jitter: float
    pressed: float
    graph: float
    loss: float
    ramp: float


@cache
def constants() -> Constants:
    """Those of constants.yaml."""
    return Constants(**{name: float(field["value"]) for name, field in yaml.safe_load(FILE.read_text()).items()})
