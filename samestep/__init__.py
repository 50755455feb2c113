"""Train one model on many machines. Get the same model, bit for bit, whatever the machines do.

In a loop of your own: `start` the replicas, give `Step` your module, and `mix` numbers into seeds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samestep.data.order import mix
    from samestep.launch.own import start
    from samestep.model.optim import SGD, AdamW
    from samestep.replica.step import Step

__all__ = ["SGD", "AdamW", "Step", "mix", "start"]
__version__ = "0.1.0"

_HOMES = {
    "AdamW": "samestep.model.optim",
    "SGD": "samestep.model.optim",
    "Step": "samestep.replica.step",
    "mix": "samestep.data.order",
    "start": "samestep.launch.own",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `samestep --help` must not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module samestep has no attribute {name}")
