"""Where the tensors of a model folder lie, and their bytes. No torch, no transformers.

A safetensors file (huggingface/safetensors, "Format"): 8 bytes for the length of the header, the header in JSON
(name -> dtype, shape, data_offsets from the end of the header), the data. The tensors fill the data without gaps.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from samestep.errors import DataError

PIECE = 4 << 20  # bytes read at once; a multiple of every element's size
HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library

ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E5M2FNUZ": 1, "F8_E4M3FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: `size` bytes from byte `start` of `file`, row-major and little-endian."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def find(folder: Path) -> dict[str, Stored]:
    """Name -> place of each tensor of the model in `folder`: one file, several, or those that an index names.

    Raises:
        DataError: no safetensors there; a file that is damaged or cut short; a tensor held twice, or named in the
            index and held nowhere.
    """
    promised = _index(folder)
    files = sorted({folder / file for file in promised.values()} or folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder} holds no .safetensors file; give a run folder or a model folder")
    found: dict[str, Stored] = {}
    for file in files:
        for name, tensor in tensors(file).items():
            if name in found:
                raise DataError(f"{file} holds {name}, and so does {found[name].file.name}; keep one model a folder")
            found[name] = tensor
    missing = sorted(promised.keys() - found.keys())
    if missing:
        raise DataError(f"{folder}: the index promises {missing[0]}, which no file holds; copy the model again")
    return found


def pieces(tensor: Stored) -> Iterator[memoryview]:
    """The tensor's bytes, at most `PIECE` at once. A piece is valid until the next one is asked for.

    Raises:
        DataError: the file was cut short since `find`.
    """
    buffer = memoryview(bytearray(min(PIECE, tensor.size)))
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for done in range(0, tensor.size, PIECE):
            piece = buffer[: tensor.size - done]
            if file.readinto(piece) < len(piece):
                raise DataError(f"{tensor.file} was cut short while it was read; copy it again")
            yield piece


def _index(folder: Path) -> dict[str, str]:
    """Tensor -> file, as `model.safetensors.index.json` says; empty where there is none."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return {}
    try:
        files = dict(json.loads(path.read_bytes())["weight_map"])
        outside = [file for file in files.values() if Path(file).name != file]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} has no weight_map of tensors to files; copy it again") from None
    if outside:
        raise DataError(f"{path} names {outside[0]!r}, which is outside its folder; a shard lies beside its index")
    return files


def tensors(file: Path) -> dict[str, Stored]:
    """Name -> place of each tensor in one file. Raises DataError for one that is damaged or cut short."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            return _header(opened, file, size)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; copy the model again") from None
    except KeyError as error:
        raise DataError(f"{file} is damaged: its header has a tensor without {error}; copy it again") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}; copy it again") from None


def _header(opened: BinaryIO, file: Path, size: int) -> dict[str, Stored]:
    """The tensors of `file`, which has `size` bytes; ValueError, KeyError or TypeError where it is damaged."""
    length = int.from_bytes(opened.read(8), "little")
    start = 8 + length
    if start > size or length > HEADER_LIMIT:
        raise ValueError(f"it has {size} bytes and promises a header of {length}")
    header = json.loads(opened.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    found = {name: _entry(file, name, entry, start) for name, entry in header.items() if name != "__metadata__"}
    _refuse_gaps(found, start, size)
    return found


def _entry(file: Path, name: str, entry: Mapping[str, Any], start: int) -> Stored:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**63 for number in (begin, end, *shape)):
        raise ValueError(f"{name} has sizes that are no counts")
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    if end - begin != math.prod(shape) * ELEMENT_BYTES[dtype]:
        raise ValueError(f"{name} is {dtype} {list(shape)} in {end - begin} bytes")
    return Stored(file, dtype, shape, start + begin, end - begin)


def _refuse_gaps(found: Mapping[str, Stored], start: int, size: int) -> None:
    end = start
    for tensor in sorted(found.values(), key=lambda tensor: (tensor.start, tensor.size)):
        if tensor.start != end:
            raise ValueError(f"its tensors overlap or leave a gap at byte {end}")
        end += tensor.size
    if end != size:
        raise ValueError(f"it has {size} bytes where its header promises {end}")
