"""WHERE the data lies: the files of one source, on this machine or at an address, and how the bytes of each are read.

Whatever goes wrong while a file is listed or open is a DataError in one line.
"""

import difflib
import io
import json
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from samestep.errors import DataError
from samestep.recipe.schema import Data

STDLIB = "python-stdlib"
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})
SUFFIXES = {
    ".txt": "text",
    ".md": "text",
    ".py": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
CODECS = {".gz": "gzip", ".zst": "zstd"}  # behind the suffix of text and JSONL
LINES = ("text", "jsonl")  # the kinds that a codec can stand behind

READ_AHEAD = 8_000_000  # bytes fetched at once from an address


@dataclass(frozen=True)
class File:
    """name: within its source; documents and rows are named by it. path: the same as a user would type it.
    kind: text, jsonl, parquet or arrow. codec: gzip or zstd. alone: it is the whole source.
    stamp: what the far side says of the content (its tag and size); None: a local file, whose bytes can be read.
    """

    name: str
    path: str
    open: Callable[[], BinaryIO]
    stamp: str | None = None
    kind: str = "text"
    codec: str | None = None
    alone: bool = False


def files(source: str, data: Data, base: Path) -> list[File]:
    """The files of `source`, relative to the folder `base`, in the order of their names.

    Hidden files and folders are left out, and under `data.format: auto` other suffixes than those of SUFFIXES. A
    folder written by `datasets` is its own list of Arrow files; one of several splits is its `train`.

    Raises DataError for what is not there or cannot be listed, and for a file alone whose format cannot be told.
    """
    if source == STDLIB or source.startswith(STDLIB + "/"):
        return _stdlib(source, data.format)
    found, alone = _remote(source) if "://" in source else _local(base / source)
    saved = _saved(found, source) if data.format in ("auto", "arrow") else None
    if saved is not None:
        return [replace(file, kind="arrow") for file in saved]
    kinds = ((file, _kind(file, data.format, alone)) for file in found)
    return [replace(file, kind=kind[0], codec=kind[1], alone=alone) for file, kind in kinds if kind]


@contextmanager
def opened(file: File) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed as they are read. Raises DataError for all that fails while it is open."""
    try:
        with file.open() as raw:
            yield raw if file.codec is None else _decompressed(raw, file.codec)
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(_unreadable(file, error)) from error
    except Exception as error:  # libraries behind fsspec raise classes of their own
        if file.stamp is None or isinstance(error, DataError):
            raise
        raise DataError(_unreadable(file, error)) from error


def _decompressed(raw: BinaryIO, codec: str) -> BinaryIO:
    """Arrow's reader, since it refuses a stream that was cut short and reads joined ones to the end."""
    from pyarrow import CompressedInputStream

    return io.BufferedReader(CompressedInputStream(raw, codec), 1 << 17)


def _unreadable(file: File, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    if isinstance(error, OSError) and error.errno and file.stamp is None:
        asked = f"cannot read {error.filename or file.path}: {error.strerror}"
        return f"{asked}; make it readable or take it out of data.source"
    if isinstance(error, (ValueError, NotImplementedError)) or type(error) is OSError:  # as decoders raise them
        kind = file.codec or file.kind.capitalize()
        return f"{file.path}: not readable as {kind} ({reason}); check the file or set data.format"
    return f"cannot read {file.path} ({type(error).__name__}: {reason}); check the address, credentials and network"


def _kind(file: File, asked: str, alone: bool) -> tuple[str, str | None] | None:
    """The kind and codec that a file is read in; None: it is no part of the source."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(file.name).suffixes]
    codec = CODECS.get(suffixes[-1]) if suffixes else None
    inner = suffixes[:-1] if codec else suffixes
    own = SUFFIXES.get(inner[-1]) if inner else None
    if codec and own not in (*LINES, None):
        own = None
    if asked == "text" or (alone and asked != "auto"):
        return asked, codec if asked in LINES else None
    if asked == "auto" and alone and own is None:
        suffix = "".join(suffixes[-2:] if codec else suffixes[-1:])
        raise DataError(
            f"{file.path}: format auto does not know the suffix '{suffix}'; set data.format to text or jsonl"
        )
    return (own, codec) if own and asked in ("auto", own) else None


def _saved(found: list[File], source: str) -> list[File] | None:
    """The Arrow files of a folder written by `datasets`' save_to_disk; None: it is another folder."""
    there = {file.name: file for file in found}
    splits = _object(there.get("dataset_dict.json")).get("splits")
    if splits is not None and "train" not in splits:
        raise DataError(
            f"{source} has no split named train; "
            f"set data.source to the folder of one of those there: {', '.join(splits)}"
        )
    above = "train/" if splits is not None else ""
    listed = _object(there.get(above + "state.json")).get("_data_files")
    if listed is None:
        return None
    names = [above + entry["filename"] for entry in listed]
    lost = [name for name in names if name not in there]
    if lost:
        raise DataError(f"{source}/{lost[0]} is not there, but {above}state.json lists it; save the dataset again")
    return [there[name] for name in names]


def _object(file: File | None) -> dict[str, Any]:
    """A small JSON file; empty where there is none and where it is something else."""
    if file is None:
        return {}
    with opened(file) as stream:
        content = stream.read()
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _stdlib(source: str, asked: str) -> list[File]:
    """The running Python's library without its tests. Some files are not UTF-8 on purpose and are left out."""
    if asked not in ("auto", "text"):
        raise DataError(f"data.format is {asked} but {source} is text; use format: auto")
    root = Path(sysconfig.get_path("stdlib"))
    package = source.removeprefix(STDLIB).strip("/")
    if not NOT_STDLIB.union({".."}).isdisjoint(package.split("/")):
        return []
    found = _named(_existing(root / package), root, NOT_STDLIB)
    return [file for file in found if file.name.endswith(".py") and _is_utf8(file)]


def _is_utf8(file: File) -> bool:
    with opened(file) as stream:
        content = stream.read()
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _local(top: Path) -> tuple[list[File], bool]:
    try:
        alone = _existing(top).is_file()
        return _named(top, top.parent if alone else top), alone
    except OSError as error:
        asked = f"cannot read {error.filename}: {error.strerror}"
        raise DataError(f"{asked}; make it readable or take it out of data.source") from error


def _existing(path: Path) -> Path:
    if path.is_file() or path.is_dir():
        return path
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, 1)
    hint = f"did you mean {near[0]}?" if near else "check data.source (paths are relative to the recipe's folder)"
    raise DataError(f"no file or folder {path}; {hint}")


def _named(top: Path, root: Path, left_out: frozenset[str] = frozenset()) -> list[File]:
    """The files at or below `top`, with names relative to `root`, in the order of the names."""
    paths = [top] if top.is_file() else _below(top, left_out)
    found = (File(path.relative_to(root).as_posix(), str(path), partial(_open, path)) for path in paths)
    return sorted(found, key=lambda file: file.name)


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _below(folder: Path, left_out: frozenset[str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Links to folders are followed; a loop of them is refused."""
    here = folder.resolve()
    if here in above:
        raise DataError(f"{folder} is a link to {here}, which it stands in; remove the link")
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in left_out:
            continue
        if path.is_dir():
            yield from _below(path, left_out, (*above, here))
        elif path.is_file() or path.is_symlink():  # a dangling link fails when it is read; pipes and sockets are left
            yield path


def _remote(address: str) -> tuple[list[File], bool]:
    """The files at or below an fsspec address."""
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(address)
        system.invalidate_cache()  # a listing kept from before may be of other content
        top = system.info(root)
        alone = top["type"] == "file"
        found = {root: top} if alone else system.find(root, detail=True)
        paths = {_relative(path, root): path for path in found}
        shown = [name for name in sorted(paths) if not any(part.startswith(".") for part in name.split("/"))]
        there = [_far_file(system, address, name, paths[name], found[paths[name]], alone) for name in shown]
    except Exception as error:  # libraries behind fsspec raise classes of their own
        raise DataError(_unreached(address, error)) from error
    return there, alone


def _relative(path: str, root: str) -> str:
    return path.removeprefix(root).strip("/") or path.rpartition("/")[2]


def _far_file(system: Any, address: str, name: str, path: str, info: dict[str, Any], alone: bool) -> File:
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or system.ukey(path)
    typed = address if alone else f"{address.rstrip('/')}/{name}"
    return File(name, typed, partial(system.open, path, "rb", block_size=READ_AHEAD), f"{tag} {info.get('size')}")


def _unreached(address: str, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    scheme = address.partition(":")[0]
    if isinstance(error, ImportError):
        way = "pip install 'samestep[s3]'" if scheme in ("s3", "s3a") else "install what it names"
        return f"{address}: reading {scheme}:// needs another package ({reason}); {way}"
    if isinstance(error, FileNotFoundError):
        return f"no file or folder {address}; check data.source"
    return f"cannot reach {address} ({type(error).__name__}: {reason}); check the address, credentials and network"
