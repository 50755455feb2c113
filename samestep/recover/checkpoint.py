"""A checkpoint: the shards of all replicas and a manifest, which is written last. Any number of replicas can load it.

    checkpoints/           in the run folder, and in run.alternate for those that the run's disk has refused
      step-200/            whole: the manifest names every file and every part, with digests
        manifest.json
        shard-1-0-1.safetensors  shard-1-1-1.safetensors ...     of generation, rank, attempt
      step-300.partial/    being written, or left by a kill; never read

A save is committed by the rename of its folder, after everything in it is on the disk. So there is no time at which a
folder without `.partial` is not whole, and the one before it is deleted only after that.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from samestep.errors import DataError
from samestep.recover import shards
from samestep.recover.disk import Disk
from samestep.recover.shards import Part, Shard

FORMAT = "samestep checkpoint 1"
FOLDER = "checkpoints"  # in the run folder
MANIFEST = "manifest.json"
PARTIAL = ".partial"

_FOLDER = re.compile(r"step-(\d+)")
_CHECKED = re.compile(rb'(\{.+),"check":"([0-9a-f]{32})"\}\n', re.DOTALL)


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    step: steps committed. digest: of the model then. shapes: of the parameters, in the order of their registration.
    updates: made to each of them. kinds: weights and the optimizer's moments. state: what else the run goes on from.
    """

    step: int
    digest: str
    shapes: dict[str, list[int]]
    updates: list[int]
    kinds: list[str]
    state: dict[str, Any]
    shards: dict[str, Shard]


class Saved(NamedTuple):
    """A checkpoint that was committed."""

    step: int
    folder: Path


def places(*folders: Path | str | None) -> tuple[Path, ...]:
    """Where the checkpoints of a run are, whose own folder comes first; None is passed over."""
    return tuple(Path(folder) / FOLDER for folder in folders if folder is not None)


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step}"


def partial_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step}{PARTIAL}"


def clean(disk: Disk, checkpoints: Path, before: float = math.inf) -> None:
    """Delete what saves that were not committed left there, of steps `before`. To be called while nobody saves them."""
    for folder in sorted(checkpoints.glob(f"step-*{PARTIAL}")):
        found = _FOLDER.fullmatch(folder.name.removesuffix(PARTIAL))
        if found and int(found[1]) < before:
            disk.remove(folder)


def begin(disk: Disk, checkpoints: Path, step: int) -> Path:
    """The folder to write the shards of `step` to; the first replica that comes makes it."""
    folder = partial_of(checkpoints, step)
    for needed in (checkpoints, folder):
        try:
            disk.make(needed)
        except FileExistsError:  # its name may not be durable yet, or never if that failed
            disk.settle(needed.parent)
    return folder


def commit(disk: Disk, checkpoints: Path, manifest: Manifest) -> Path:
    """Make the shards in the folder that `begin` gave a checkpoint. Raises OSError; then it is not known to be one."""
    partial, final = partial_of(checkpoints, manifest.step), folder_of(checkpoints, manifest.step)
    for left in sorted(set(partial.iterdir()) - {partial / name for name in manifest.shards}):
        disk.unlink(left)  # of an attempt that failed, or of a generation that ended
    disk.write(partial / MANIFEST, [encode(manifest)])
    disk.settle(partial)
    disk.rename(partial, final)
    return final


def discard(disk: Disk, checkpoints: Path, step: int) -> None:
    """Delete a checkpoint. It loses its name first, so that none is ever seen half deleted."""
    partial = partial_of(checkpoints, step)
    disk.remove(partial)
    disk.rename(folder_of(checkpoints, step), partial)
    disk.remove(partial)


def steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints that were committed there, the newest first."""
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return sorted((int(found[1]) for found in map(_FOLDER.fullmatch, names) if found), reverse=True)


def saved(*places: Path) -> list[Saved]:
    """The checkpoints in all places, the newest first; of one step that in the first place."""
    found = [Saved(step, folder_of(place, step)) for place in places for step in steps(place)]
    return sorted(found, key=lambda one: -one.step)


def surplus(whole: Sequence[Saved], keep: int) -> list[Saved]:
    """Of verified checkpoints those to delete, the oldest first: all but the newest `keep` steps' own, at least 1."""
    kept = sorted({one.step for one in whole})[-max(keep, 1) :]
    return sorted(one for one in whole if one.step not in kept)


def newest(*places: Path) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint in any place that is whole, every byte of it verified, and why newer ones are not."""
    refused: list[str] = []
    for one in saved(*places):
        try:
            verify(one.folder)
        except DataError as error:
            refused.append(str(error))
        else:
            return one, refused
    return None, refused


def takers(places: Sequence[Path], wrote: Iterable[Path]) -> Sequence[Path]:
    """Where to commit the shards that were written in the places `wrote`, in the order of trying: none that has refused
    one, for they are tried in order too.
    """
    return places[max(map(places.index, wrote)) :]


def verify(folder: Path) -> Manifest:
    """The manifest of `folder`, once every byte there is known to be what was written.

    Raises:
        DataError: names the file, and the tensor where it is one.
    """
    manifest = read(folder)
    for _ in parts(folder, manifest):
        pass
    return manifest


def parts(folder: Path, manifest: Manifest) -> Iterator[tuple[Part, memoryview]]:
    """All parts with their bytes (float32, little-endian), each verified before it is given out. DataError if not."""
    for name, shard in manifest.shards.items():
        yield from shards.verified(folder / name, shard)


def read(folder: Path) -> Manifest:
    """The manifest of `folder`, which lists parts that hold every parameter once. Raises DataError."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    found = _CHECKED.fullmatch(text)
    if found is None or found[2] != shards.digest(found[1]).encode():
        raise DataError(f"{path} is not what was written there (its digest differs)")
    manifest = _manifest(json.loads(found[1] + b"}"), path)
    _refuse_gaps(manifest, path)
    return manifest


def encode(manifest: Manifest) -> bytes:
    fields = {"format": FORMAT} | asdict(manifest)
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False)[:-1].encode()
    return body + b',"check":"%s"}\n' % shards.digest(body).encode()


def _manifest(fields: dict[str, Any], path: Path) -> Manifest:
    kind = fields.pop("format")
    if kind != FORMAT:
        raise DataError(
            f"{path} is of the format {kind!r}, but this version reads {FORMAT!r}; use the one that wrote it"
        )
    held = {name: Shard(**shard) for name, shard in fields.pop("shards").items()}
    return Manifest(**fields, shards=held)


def _refuse_gaps(manifest: Manifest, path: Path) -> None:
    sizes = {name: math.prod(shape) for name, shape in manifest.shapes.items()}
    for (kind, parameter), ranges in _ranges(manifest.shards).items():
        if kind not in manifest.kinds or parameter not in sizes:
            raise DataError(f"{path} lists {kind} of {parameter}, which is no part of the run's state")
        end = 0
        for start, stop in sorted(ranges):
            if start != end:
                raise DataError(f"{path}: {kind} of {parameter} has a gap or overlaps at element {min(start, end)}")
            end = stop
        if end != sizes[parameter]:
            raise DataError(f"{path}: {kind} of {parameter} ends at {end} of {sizes[parameter]} elements")
    missing = {(k, p) for k in manifest.kinds for p in sizes} - _ranges(manifest.shards).keys()
    if missing:
        raise DataError(f"{path} lists no {' of '.join(min(missing))}")


def _ranges(held: Mapping[str, Shard]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for shard in held.values():
        for one in map(shards.part, shard.tensors):
            found.setdefault((one.kind, one.parameter), []).append((one.start, one.stop))
    return found
