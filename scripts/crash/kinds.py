"""The kinds of saves, each made in a folder of its own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import models
from folders import Export, Model
from saves import Saves

from samestep.sync.flat import trainable


def _full(folder: Path) -> Saves:
    return Saves(trainable(models.small()), keep=3, first=False)


def _lora(folder: Path) -> Saves:
    module, _ = models.adapted(models.base(folder))
    return Saves(trainable(module), keep=3, first=False)


def _rotation(folder: Path) -> Saves:
    return Saves(trainable(models.smallest()), keep=1, first=False)


def _first(folder: Path) -> Saves:
    return Saves(trainable(models.smallest()), keep=3, first=True)


def _best(folder: Path) -> Model:
    file = models.tokenizer(folder)
    return Model("best", *(partial(models.write, models.small(seed), file) for seed in (1, 2)))


def _model(folder: Path) -> Model:
    origin = models.base(folder)
    return Model("model", None, partial(models.write_adapter, origin))


def _export(folder: Path) -> Export:
    return Export(models.finished(folder), merge=False)


def _merged(folder: Path) -> Export:
    return Export(models.finished(folder), merge=True)


KINDS: dict[str, Callable[[Path], Any]] = {
    "full": _full,
    "lora": _lora,
    "rotation": _rotation,
    "first": _first,
    "best": _best,
    "model": _model,
    "export": _export,
    "export --merge": _merged,
}
