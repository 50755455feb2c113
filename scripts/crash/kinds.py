"""The kinds of saves, each made in a folder of its own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tiny_models
from folders import Export, Model
from saves import Saves

from samestep.sync.flat import trainable


def _full(folder: Path) -> Saves:
    return Saves(trainable(tiny_models.small()), keep=3, first=False)


def _lora(folder: Path) -> Saves:
    module, _ = tiny_models.adapted(tiny_models.base(folder))
    return Saves(trainable(module), keep=3, first=False)


def _rotation(folder: Path) -> Saves:
    return Saves(trainable(tiny_models.smallest()), keep=1, first=False)


def _first(folder: Path) -> Saves:
    return Saves(trainable(tiny_models.smallest()), keep=3, first=True)


def _alternate(folder: Path) -> Saves:
    return Saves(trainable(tiny_models.smallest()), keep=3, first=False, beside=True)


def _best(folder: Path) -> Model:
    file = tiny_models.tokenizer(folder)
    return Model("best", *(partial(tiny_models.write, tiny_models.small(seed), file) for seed in (1, 2)))


def _model(folder: Path) -> Model:
    origin = tiny_models.base(folder)
    return Model("model", None, partial(tiny_models.write_adapter, origin))


def _export(folder: Path) -> Export:
    return Export(tiny_models.finished(folder), merge=False)


def _merged(folder: Path) -> Export:
    return Export(tiny_models.finished(folder), merge=True)


KINDS: dict[str, Callable[[Path], Any]] = {
    "full": _full,
    "lora": _lora,
    "rotation": _rotation,
    "first": _first,
    "alternate": _alternate,
    "best": _best,
    "model": _model,
    "export": _export,
    "export --merge": _merged,
}
