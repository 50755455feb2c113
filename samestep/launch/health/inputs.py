"""What a recipe reads: its sources, its model folder, or the hub where that has to come from."""

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from samestep.data.files import files, opened
from samestep.errors import DataError, RecipeError
from samestep.launch.health.finding import Finding, failure, looked, split
from samestep.model.folder import cached, resolve
from samestep.recipe.schema import Data, Model

PATIENCE = 3.0  # seconds that the hub has to answer


class Hub(NamedTuple):
    """cached: the model is whole in the local cache. reached: why the hub is not, where it was asked; else empty."""

    name: str
    cached: bool
    offline: bool
    cache: str
    writable: bool
    reached: str


def sources(data: Data, base: Path) -> list[Finding]:
    """Whether each is there, and its first file can be opened."""
    found = []
    for source in data.weights:
        try:
            first = next(iter(files(source, data, base)), None)
            if first is None:
                raise DataError(f"{source} holds no file to read; name another data.source")
            with opened(first) as stream:
                stream.read(1)
        except DataError as error:
            found.append(split("data", str(error)))
    return looked("data", ", ".join(data.weights), found)


def model(asked: Model, base: Path) -> list[Finding]:
    """Of a path or a config; a name is the hub's."""
    try:
        folder = None if asked.name else resolve(asked, base)
    except RecipeError as error:
        return [split("model", str(error))]
    return looked("model", str(folder or asked.config or f"new, {asked.layers} layers of {asked.width}"), [])


def hub(name: str) -> Hub:
    """Nothing is downloaded."""
    from huggingface_hub import constants

    there = cached(name) is not None
    offline = bool(constants.is_offline_mode())
    cache = Path(constants.HF_HUB_CACHE)
    above = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    asked = not there and not offline
    reached = _call(constants.ENDPOINT, os.environ) if asked else ""
    return Hub(name, there, offline, str(cache), os.access(above, os.W_OK), reached)


def judge_hub(hub: Hub) -> list[Finding]:
    if hub.cached:
        return looked("model", f"{hub.name} is in {hub.cache}", [])
    lacking = f"{hub.name} is not in the local hub cache {hub.cache}"
    if hub.offline:
        fix = f"hf download {hub.name} where there is a network, or unset HF_HUB_OFFLINE"
        return [failure("model", f"{lacking}, and HF_HUB_OFFLINE forbids to fetch it", fix)]
    found = []
    if not hub.writable:
        found.append(failure("model", f"{lacking}, which this user cannot write", "set HF_HOME to a folder of yours"))
    if hub.reached:
        fix = "connect this machine, set HTTPS_PROXY or HF_ENDPOINT, or bring the folder and set model.path"
        found.append(failure("model", f"{lacking}, and the hub is not reached ({hub.reached})", fix))
    return looked("model", f"{hub.name} will be fetched", found)


def _call(endpoint: str, environment: Mapping[str, str]) -> str:
    """Why the hub, or the proxy before it, is not reached."""
    proxy = environment.get("HTTPS_PROXY") or environment.get("https_proxy")
    at = urlsplit(proxy or endpoint)
    port = at.port or (443 if at.scheme == "https" else 80)
    try:
        with contextlib.closing(socket.create_connection((at.hostname, port), PATIENCE)):
            return ""
    except OSError as error:
        return f"{at.hostname}: {error.strerror or error}"
