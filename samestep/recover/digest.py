"""The digest of a model: one SHA-256 over the names, dtypes, shapes and bytes of its parameters.

It is the same from tensors in memory and from safetensors files. All integers are 8 bytes, little-endian; text is
its length in bytes, then its UTF-8; dtypes have safetensors' names (F32, BF16, ...).

    of a tensor   sha256( text(dtype)  integer(number of dimensions)  integer(each dimension)  data )
                  data: the elements in row-major order, little-endian
    of a model    sha256( text("samestep digest 1")  integer(number of tensors)
                          for each name, in the order of code points:  text(name)  the tensor's 32 bytes )

A tensor's digest does not hold its name, and a model's is made of its tensors', so both come from one pass over the
bytes. Tied parameters count once for each name they are given under; `named_parameters` and saved folders give one.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from samestep.errors import DataError
from samestep.recover import stored

if TYPE_CHECKING:
    import torch

TORCH_NAMES = {
    "torch.bool": "BOOL", "torch.uint8": "U8", "torch.int8": "I8", "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e8m0fnu": "F8_E8M0", "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ", "torch.uint16": "U16", "torch.int16": "I16", "torch.float16": "F16",
    "torch.bfloat16": "BF16", "torch.uint32": "U32", "torch.int32": "I32", "torch.float32": "F32",
    "torch.uint64": "U64", "torch.int64": "I64", "torch.float64": "F64", "torch.complex64": "C64",
}  # fmt: skip


def of_tensors(named: Mapping[str, "torch.Tensor"]) -> str:
    """`sha256:<64 hex>` of tensors on any device. One tensor at a time is copied, if it is not contiguous on a CPU."""
    return combine(per_tensor(named))


def of_folder(folder: Path) -> str:
    """`sha256:<64 hex>` of the safetensors in `folder`.

    Raises:
        DataError: no safetensors there, a header that is damaged, or a file cut short.
    """
    return combine(per_tensor(folder))


def per_tensor(source: "Mapping[str, torch.Tensor] | Path") -> dict[str, str]:
    """Name -> the 64 hex digits of that tensor's digest, of tensors or of a folder as `of_folder` takes it."""
    if isinstance(source, Path):
        return {name: _digest(at.dtype, at.shape, stored.pieces(at)) for name, at in stored.find(source).items()}
    return {name: _of_tensor(name, tensor) for name, tensor in source.items()}


def combine(digests: Mapping[str, str]) -> str:
    """The digest of the model whose tensors have `digests`, as from `per_tensor`."""
    whole = hashlib.sha256(_text("samestep digest 1") + _integer(len(digests)))
    for name in sorted(digests):
        whole.update(_text(name) + bytes.fromhex(digests[name]))
    return f"sha256:{whole.hexdigest()}"


def _of_tensor(name: str, tensor: "torch.Tensor") -> str:
    import torch

    dtype = TORCH_NAMES.get(str(tensor.dtype))
    if dtype is None:
        raise DataError(f"{name} is of {tensor.dtype}, which safetensors does not hold; convert it first")
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return _digest(dtype, tuple(tensor.shape), [data.numpy().data])


def _digest(dtype: str, shape: tuple[int, ...], data: Iterable[memoryview]) -> str:
    digest = hashlib.sha256(_text(dtype) + _integer(len(shape)) + b"".join(map(_integer, shape)))
    for piece in data:
        digest.update(piece)
    return digest.hexdigest()


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")  # a damaged name is a name still
    return _integer(len(encoded)) + encoded


def _integer(number: int) -> bytes:
    return number.to_bytes(8, "little")
