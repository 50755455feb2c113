"""The corpus as named documents: Python's own standard library, or a file or folder of text, JSONL or Parquet.

All documents are held in memory, so that their fingerprint can name the cache of their tokens.
"""

import difflib
import hashlib
import io
import json
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
    ".parquet": "parquet",
}

PART = 8_192  # characters of a document where one text file is the whole corpus


@dataclass(frozen=True)
class Document:
    name: str
    text: str


def documents(data: Data, base: Path) -> list[Document]:
    """Reads `data.source`, relative to the folder `base`; files in the order of their names, rows in that of the file.

    A file of text is one document, named by its path within the source; where it is the whole source, every PART
    characters of it, up to the end of a line, are one, named `file.txt:1` by their first line. A row of JSONL or
    Parquet is one, named `file.jsonl:17` (lines and rows count from 1). Hidden files and folders, empty texts and,
    under `format: auto`, other suffixes than those of SUFFIXES are left out. A byte-order mark at the start of a file
    is dropped.

    Raises DataError for what is not there, not UTF-8, not of its format, or without any text.
    """
    try:
        kept = [document for document in _found(data, base) if document.text]
    except OSError as error:
        asked = f"cannot read {error.filename}: {error.strerror}"
        raise DataError(f"{asked}; make it readable or take it out of data.source {data.source}") from error
    if not kept:
        raise DataError(
            f"data.source {data.source} under data.format {data.format} holds no text; "
            f"name a file or folder with some (auto reads {' '.join(SUFFIXES)})"
        )
    return kept


def position(name: str) -> float:
    """The document's fixed place in [0, 1): blake2b of its name."""
    word = int.from_bytes(hashlib.blake2b(_encoded(name), digest_size=8).digest(), "big")
    return (word >> 11) / 2**53  # all that a double holds; more could round up to 1


def is_held_out(name: str, share: float) -> bool:
    """Whether a document is held out. One held out at some share is so at every larger one."""
    return position(name) < share


def fingerprint(found: Iterable[Document]) -> str:
    """SHA-256 over names and texts in their order, each with its length in bytes before it."""
    sha = hashlib.sha256()
    for document in found:
        for part in (_encoded(document.name), document.text.encode()):
            sha.update(len(part).to_bytes(8, "little"))
            sha.update(part)
    return sha.hexdigest()


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # Linux allows file names that are not UTF-8


def _found(data: Data, base: Path) -> Iterator[Document]:
    if data.source == STDLIB or data.source.startswith(STDLIB + "/"):
        return _stdlib(data)
    return _read(_existing(base / data.source), data)


def _stdlib(data: Data) -> Iterator[Document]:
    """The running Python's library without its tests. Some files are not UTF-8 on purpose and are left out."""
    if data.format not in ("auto", "text"):
        raise DataError(f"data.format is {data.format} but {data.source} is text; use format: auto")
    root = Path(sysconfig.get_path("stdlib"))
    package = data.source.removeprefix(STDLIB).strip("/")
    if not NOT_STDLIB.union({".."}).isdisjoint(package.split("/")):
        return
    for path, name in _named(_existing(root / package), root, NOT_STDLIB):
        if path.suffix == ".py":
            try:
                yield Document(name, _decoded(path))
            except UnicodeDecodeError:
                continue


def _read(top: Path, data: Data) -> Iterator[Document]:
    alone = top.is_file()
    for path, name in _named(top, top.parent if alone else top):
        kind = _format(path, data.format, alone)
        if kind is not None:
            found = READERS[kind](path, name, data.text_field)
            yield from (part for document in found for part in _parts(document)) if alone and kind == "text" else found


def _parts(document: Document) -> Iterator[Document]:
    """A file that is a whole corpus, as documents of whole lines, so that some of it can be held out."""
    if len(document.text) <= PART:
        yield document
        return
    lines: list[str] = []
    size = first = 0
    for number, line in enumerate(io.StringIO(document.text, newline="\n"), 1):
        first = first or number
        lines.append(line)
        size += len(line)
        if size >= PART:
            yield Document(f"{document.name}:{first}", "".join(lines))
            lines, size, first = [], 0, 0
    yield Document(f"{document.name}:{first}", "".join(lines))


def _format(path: Path, asked: str, alone: bool) -> str | None:
    """The format a file is read in; None: it is no part of the corpus."""
    if asked == "text" or (alone and asked != "auto"):
        return asked
    own = SUFFIXES.get(path.suffix.lower())
    if asked == "auto" and alone and own is None:
        raise DataError(
            f"{path}: format auto does not know the suffix '{path.suffix}'; set data.format to text or jsonl"
        )
    return own if asked in ("auto", own) else None


def _existing(path: Path) -> Path:
    if path.is_file() or path.is_dir():
        return path
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, 1)
    hint = f"did you mean {near[0]}?" if near else "check data.source (paths are relative to the recipe's folder)"
    raise DataError(f"no file or folder {path}; {hint}")


def _named(top: Path, root: Path, left_out: frozenset[str] = frozenset()) -> list[tuple[Path, str]]:
    """The files at or below `top` with their names, relative to `root`, in the order of the names."""
    paths = [top] if top.is_file() else _files(top, left_out)
    return sorted(((path, path.relative_to(root).as_posix()) for path in paths), key=lambda pair: pair[1])


def _files(folder: Path, left_out: frozenset[str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Links to folders are followed; a loop of them is refused."""
    here = folder.resolve()
    if here in above:
        raise DataError(f"{folder} is a link to {here}, which it stands in; remove the link")
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in left_out:
            continue
        if path.is_dir():
            yield from _files(path, left_out, (*above, here))
        elif (
            path.is_file() or path.is_symlink()
        ):  # a dangling link fails when it is read; pipes and sockets are no text
            yield path


def _decoded(path: Path) -> str:
    return path.read_bytes().decode("utf-8").removeprefix("\ufeff")


def _text(path: Path) -> str:
    try:
        return _decoded(path)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line_start = before.rfind(b"\n") + 1
        line, column = before.count(b"\n") + 1, len(before[line_start:].decode("utf-8")) + 1
        raise DataError(
            f"{path}:{line}:{column}: byte 0x{error.object[error.start]:02x} is not UTF-8; "
            f"convert it with iconv -f ENCODING -t UTF-8 (latin1 and utf-16 are frequent)"
        ) from error


def _text_file(path: Path, name: str, _field: str) -> Iterator[Document]:
    yield Document(name, _text(path))


def _jsonl_file(path: Path, name: str, field: str) -> Iterator[Document]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield Document(f"{name}:{number}", _field_of_line(line, field, f"{path}:{number}"))


def _field_of_line(line: str, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        column, reason = getattr(error, "colno", 1), getattr(error, "msg", error)
        raise DataError(f"{where}:{column}: not JSON ({reason}); every line of JSONL is one whole object") from error
    where = f"{where}:{len(line) - len(line.lstrip()) + 1}"
    if not isinstance(row, dict):
        raise DataError(f"{where}: a line of JSONL must be an object, this is of type {type(row).__name__}")
    if field not in row:
        raise DataError(_lacking(where, field, row))
    return _checked(row[field], field, where)


def _parquet_file(path: Path, name: str, field: str) -> Iterator[Document]:
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            columns = file.schema_arrow.names
            values = file.read(columns=[field]).column(field).to_pylist() if field in columns else None
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not readable as Parquet ({reason}); check the file or set data.format") from error
    if values is None:
        raise DataError(_lacking(str(path), field, columns))
    for number, value in enumerate(values, 1):
        yield Document(f"{name}:{number}", _checked(value, field, f"{path}:{number}"))


def _lacking(where: str, field: str, there: Iterable[str]) -> str:
    return f"{where}: no field '{field}'; set data.text_field to one of those there: {', '.join(there) or '(none)'}"


def _checked(value: object, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{where}: field '{field}' must be text, it is of type {type(value).__name__}; "
            f"drop the row or set data.text_field"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair, which is no character
        half = f"\\u{ord(value[error.start]):04x}"
        raise DataError(
            f"{where}: field '{field}' holds {half} without its other half; repair or drop the row"
        ) from error
    return value


READERS: dict[str, Callable[[Path, str, str], Iterator[Document]]] = {
    "text": _text_file,
    "jsonl": _jsonl_file,
    "parquet": _parquet_file,
}
