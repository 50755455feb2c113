"""One replica's part of a checkpoint: a safetensors file of parts of parameters, with a digest of each.

A part is named by what it holds, the parameter and the elements: `moment0/model.norm.weight[0:576]`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from samestep.errors import DataError
from samestep.recover import stored
from samestep.recover.disk import Bytes, Disk

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"(\w+)/(.+)\[(\d+):(\d+)\]", re.DOTALL)


class Part(NamedTuple):
    """Elements start .. stop - 1 of a parameter's weights or of one of its moments."""

    kind: str  # weights, moment0, moment1
    parameter: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.kind}/{self.parameter}[{self.start}:{self.stop}]"


def part(name: str) -> Part:
    """The part of that name. ValueError if it is none."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} names no part of a parameter")
    return Part(found[1], found[2], int(found[3]), int(found[4]))


@dataclass(frozen=True)
class Shard:
    """What the manifest knows of a file. Digests are XXH3 of 128 bits, in hex: they find accidents, not forgers."""

    size: int  # bytes
    header: str  # the digest of all before the data
    tensors: dict[str, str]  # name -> the digest of its bytes


def write(disk: Disk, path: Path, parts: Mapping[Part, "Tensor"]) -> Shard:
    """Write float32 `parts`, one-dimensional and on the CPU, to the new file `path`. Raises OSError."""
    header = _header(parts)
    data = {str(name): _bytes(tensor) for name, tensor in parts.items()}
    disk.write(path, [header, *data.values()])
    digests = {name: digest(piece) for name, piece in data.items()}
    return Shard(len(header) + sum(map(len, data.values())), digest(header), digests)


def verified(path: Path, shard: Shard) -> Iterator[tuple[Part, memoryview]]:
    """Each part with its bytes, once they are known to be those that were written.

    Raises:
        DataError: the file is not what was written; names the file, and the tensor where it is one.
    """
    for name, place in _placed(path, shard).items():
        data = _read(path, place)
        if digest(data) != shard.tensors[name]:
            raise DataError(f"{path}: {name} is not what was written there (its digest differs)")
        yield part(name), data


def digest(data: Bytes) -> str:
    found: str = xxhash.xxh3_128_hexdigest(data)
    return found


def _header(parts: Mapping[Part, "Tensor"]) -> bytes:
    entries, end = {}, 0
    for name, tensor in parts.items():
        size = 4 * tensor.numel()
        entries[str(name)] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data are aligned then
    return len(text).to_bytes(8, "little") + text


def _placed(path: Path, shard: Shard) -> dict[str, stored.Stored]:
    """Where the parts lie, from a header that is the one that was written."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = file.read(8)
            header = length + file.read(min(int.from_bytes(length, "little"), size))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if size != shard.size:
        cut = _cut(shard, size)
        lost = f"; {cut} is cut short" if cut else ""
        raise DataError(f"{path} has {size} bytes, but {shard.size} were written{lost}")
    if digest(header) != shard.header:
        raise DataError(f"{path}: its header is not what was written there (its digest differs)")
    return stored.tensors(path)


def _cut(shard: Shard, size: int) -> str | None:
    """The first part that is not whole in `size` bytes; None where not even the header is, or all are."""
    sizes = {name: 4 * (part(name).stop - part(name).start) for name in shard.tensors}
    ends = accumulate(sizes.values(), initial=shard.size - sum(sizes.values()))
    if size < next(ends):
        return None
    return next((name for name, end in zip(sizes, ends, strict=True) if size < end), None)


def _read(path: Path, place: stored.Stored) -> memoryview:
    data = memoryview(bytearray(place.size))
    try:
        with path.open("rb") as file:
            file.seek(place.start)
            file.readinto(data)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return data


def _bytes(tensor: "Tensor") -> memoryview:
    import torch

    return memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
