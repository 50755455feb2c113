"""The rows of one source: files are cut into chunks here, and a chunk is parsed wherever there is a processor free.

Memory is bounded by a few chunks and the longest row, whatever the size of the source. Text is the exception: a file
of it is one document, and so one chunk, unless it is the whole source.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from samestep.data.files import SUFFIXES, File, files, opened
from samestep.errors import DataError
from samestep.recipe.schema import Data

PART = 8_192  # characters of a document where one text file is the whole source
BLOCK = 1 << 20  # bytes of a chunk, about; a longer row or text makes a longer one
LINE_LIMIT = 64_000_000  # bytes of a line of JSONL
BATCH_ROWS = 1024  # of Parquet, read at once at most
BOM = b"\xef\xbb\xbf"

# Escapes of a JSON string from left to right: a whole surrogate pair, half of one (the group), any other.
ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u([dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file, not parsed yet.

    name, path: of the file, within its source and as a user would type it. first: number of the first row or line in
    `payload`, from 1. kind: text (UTF-8 without a byte-order mark), jsonl (whole lines), arrow (an IPC stream of record
    batches) or oversize (the digits of a line's size in bytes, in place of the line). alone: a text file that is the
    whole source.
    """

    name: str
    path: str
    first: int
    kind: str
    payload: bytes
    alone: bool


@dataclass(frozen=True)
class Invalid:
    """A row or sample that cannot be used. message: one sentence that begins with its place."""

    message: str


@dataclass(frozen=True)
class Row:
    """name: of the document, `chats.jsonl:17`; of a text its file's, of a part of one `big.txt:301`, its first line.
    where: the same after the path, for messages. fields: a text is {"text": ...}.
    """

    name: str
    where: str
    fields: dict[str, Any] | Invalid


def chunks(source: str, data: Data, base: Path) -> Iterator[Chunk]:
    """The chunks of `source`, relative to the folder `base`; files in the order of their names, rows in the file's.

    A file of text is one document; where it is the whole source, every PART characters of it, up to the end of a
    line, are one. Empty texts and blank lines are left out.

    Raises DataError for what is not there, cannot be read or is not of its format, for text that is not UTF-8, and
    where there is nothing at all.
    """
    empty = True
    for file in files(source, data, base):
        with opened(file) as stream:
            for chunk in CUT[file.kind](file, stream):
                empty = False
                yield chunk
    if empty:
        raise DataError(
            f"data.source {source} under data.format {data.format} holds no text; "
            f"name a file or folder with some (auto reads {' '.join(SUFFIXES)}, .gz and .zst)"
        )


def rows(chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk. One that cannot be parsed comes as Invalid; nothing is raised for it."""
    return PARSE[chunk.kind](chunk)


def fingerprint(source: str, data: Data, base: Path) -> str:
    """XXH3 (128 bits, hex) over the names, sizes and bytes of the files as they lie; of remote ones, over their tags.

    Raises DataError as `chunks` does, but reads no format.
    """
    from xxhash import xxh3_128

    state = xxh3_128()
    for file in files(source, data, base):
        for part in (_encoded(file.name), f"{file.kind} {file.alone} {file.stamp}".encode()):
            state.update(len(part).to_bytes(8, "little") + part)
        if file.stamp is None:
            with opened(replace(file, codec=None)) as raw:
                state.update(os.fstat(raw.fileno()).st_size.to_bytes(8, "little"))
                for block in _blocks(raw):
                    state.update(block)
    return str(state.hexdigest())


def position(name: str) -> float:
    """The document's fixed place in [0, 1): blake2b of its name."""
    word = int.from_bytes(hashlib.blake2b(_encoded(name), digest_size=8).digest(), "big")
    return (word >> 11) / 2**53  # all that a double holds; more could round up to 1


def is_held_out(name: str, share: float) -> bool:
    """Whether a document is held out. One held out at some share is so at every larger one."""
    return position(name) < share


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # Linux allows file names that are not UTF-8


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    return iter(partial(stream.read, BLOCK), b"")


def _cut_text(file: File, stream: BinaryIO) -> Iterator[Chunk]:
    if file.alone:
        yield from _cut_parts(file, stream)
    elif content := stream.read().removeprefix(BOM):
        _utf8(content, file.path, 1)
        yield Chunk(file.name, file.path, 1, "text", content, False)


def _cut_parts(file: File, stream: BinaryIO) -> Iterator[Chunk]:
    """A chunk ends where a part ends, so that its rows are the parts of the whole file."""
    held, first, characters = bytearray(), 1, 0
    for number, line in enumerate(stream, 1):
        line = line.removeprefix(BOM) if number == 1 else line
        held += line
        characters += len(_utf8(line, file.path, number))
        if characters >= PART:
            characters = 0
            if len(held) >= BLOCK:
                yield Chunk(file.name, file.path, first, "text", bytes(held), True)
                held, first = bytearray(), number + 1
    if held:
        yield Chunk(file.name, file.path, first, "text", bytes(held), True)


def _cut_lines(file: File, stream: BinaryIO) -> Iterator[Chunk]:
    first = 1
    for kind, payload in _whole_lines(_checked(file, stream)):
        if not payload.isspace():
            yield Chunk(file.name, file.path, first, kind, payload, False)
        first += payload.count(b"\n") if kind == "jsonl" else 1


def _checked(file: File, stream: BinaryIO) -> Iterator[bytes]:
    """The blocks of a file of JSONL without its byte-order mark. Raises DataError where it is one JSON array."""
    head = stream.read(BLOCK).removeprefix(BOM)
    line, _, rest = head.strip().partition(b"\n")
    if line.startswith(b"[") and not (line.rstrip().endswith(b"]") and rest):
        raise DataError(
            f"{file.path}:1:1: the file is one JSON array, and JSONL has one object a line; "
            f"jq -c '.[]' FILE.json > FILE.jsonl makes lines of it"
        )
    if head:
        yield head
    yield from _blocks(stream)


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    """The kinds and payloads of chunks. Of a line over LINE_LIMIT no more than that is ever held."""
    held, dropped = bytearray(), 0  # dropped: bytes so far of a line that is too long
    for block in blocks:
        if dropped:
            end = block.find(b"\n")
            dropped += end if end >= 0 else len(block)
            if end < 0:
                continue
            yield "oversize", b"%d" % dropped
            dropped, block = 0, block[end + 1 :]
        end = block.rfind(b"\n") + 1
        held += block[:end]
        if end:
            yield "jsonl", bytes(held)
            held = bytearray()
        held += block[end:]
        if len(held) > LINE_LIMIT:
            held, dropped = bytearray(), len(held)
    if dropped or held:
        yield ("oversize", b"%d" % dropped) if dropped else ("jsonl", bytes(held))


def _cut_parquet(file: File, stream: BinaryIO) -> Iterator[Chunk]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(stream, buffer_size=BLOCK, pre_buffer=False) as table:
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        row = sum(group.total_byte_size for group in groups) // max(1, table.metadata.num_rows)
        count = min(BATCH_ROWS, max(1, BLOCK // max(1, row)))
        yield from _cut_batches(file, table.iter_batches(batch_size=count))


def _cut_arrow(file: File, stream: BinaryIO) -> Iterator[Chunk]:
    """Both of Arrow's containers: streams, as `datasets` writes them, and files (Feather)."""
    from pyarrow import ipc

    magic = stream.read(6)
    stream.seek(0)
    if magic == b"ARROW1":
        table = ipc.open_file(stream)
        yield from _cut_batches(file, (table.get_batch(i) for i in range(table.num_record_batches)))
    else:
        yield from _cut_batches(file, ipc.open_stream(stream))


def _cut_batches(file: File, batches: Iterable[Any]) -> Iterator[Chunk]:
    held: list[Any] = []
    first, size = 1, 0
    for piece in (piece for batch in batches for piece in _pieces(batch)):
        held.append(piece)
        size += piece.nbytes
        if size >= BLOCK:
            yield _arrow_chunk(file, first, held)
            first += sum(batch.num_rows for batch in held)
            held, size = [], 0
    if held:
        yield _arrow_chunk(file, first, held)


def _pieces(batch: Any) -> Iterator[Any]:
    count = max(1, batch.num_rows * BLOCK // max(1, batch.nbytes))
    return (batch.slice(start, count) for start in range(0, batch.num_rows, count))


def _arrow_chunk(file: File, first: int, batches: list[Any]) -> Chunk:
    from pyarrow import BufferOutputStream, ipc

    sink = BufferOutputStream()
    with ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return Chunk(file.name, file.path, first, "arrow", sink.getvalue().to_pybytes(), False)


def _text_rows(chunk: Chunk) -> Iterator[Row]:
    text = chunk.payload.decode()
    if not chunk.alone or (chunk.first == 1 and len(text) <= PART):
        yield Row(chunk.name, chunk.path, {"text": text})
        return
    for number, part in _parts(text, chunk.first):
        yield Row(f"{chunk.name}:{number}", f"{chunk.path}:{number}", {"text": part})


def _parts(text: str, number: int) -> Iterator[tuple[int, str]]:
    """Whole lines together until they have PART characters, each time with the number of the first one."""
    lines: list[str] = []
    size = 0
    for line in io.StringIO(text, newline="\n"):
        lines.append(line)
        size += len(line)
        if size >= PART:
            yield number, "".join(lines)
            number, lines, size = number + len(lines), [], 0
    if lines:
        yield number, "".join(lines)


def _line_rows(chunk: Chunk) -> Iterator[Row]:
    for number, line in enumerate(chunk.payload.split(b"\n"), chunk.first):
        if line and not line.isspace():
            fields = _object(line.removesuffix(b"\r"), chunk.path, number)
            yield Row(f"{chunk.name}:{number}", f"{chunk.path}:{number}", fields)


def _object(line: bytes, path: str, number: int) -> dict[str, Any] | Invalid:
    where = f"{path}:{number}"
    if len(line) > LINE_LIMIT:
        return _oversize(where, len(line))
    if b"\0" in line:
        column = len(line.partition(b"\0")[0].decode(errors="replace")) + 1
        return Invalid(f"{where}:{column}: a NUL byte, which is in no JSON; the file is damaged or not UTF-8")
    try:
        text = _utf8(line, path, number)
        row = json.loads(text)
    except DataError as error:
        return Invalid(str(error))
    except (ValueError, RecursionError) as error:
        column, reason = getattr(error, "colno", 1), getattr(error, "msg", error)
        return Invalid(f"{where}:{column}: not JSON ({reason}); every line of JSONL is one whole object")
    if not isinstance(row, dict):
        column = len(text) - len(text.lstrip()) + 1
        return Invalid(f"{where}:{column}: a line of JSONL must be an object, this is of type {type(row).__name__}")
    return _lone_surrogate(text, where) or row


def _lone_surrogate(text: str, where: str) -> Invalid | None:
    """JSON can write half a surrogate pair, which is no character."""
    if "\\ud" not in text and "\\uD" not in text:
        return None
    half = next((escape for escape in ESCAPES.finditer(text) if escape[1]), None)
    if half is None:
        return None
    return Invalid(f"{where}:{half.start() + 1}: {half[0].lower()} without its other half; repair or drop the row")


def _oversize_row(chunk: Chunk) -> Iterator[Row]:
    where = f"{chunk.path}:{chunk.first}"
    yield Row(f"{chunk.name}:{chunk.first}", where, _oversize(where, int(chunk.payload)))


def _oversize(where: str, size: int) -> Invalid:
    said = f"the line has {size / 1e6:,.0f} MB, and a row at most {LINE_LIMIT / 1e6:,.0f}"
    return Invalid(f"{where}:1: {said}; split it or drop it")


def _arrow_rows(chunk: Chunk) -> Iterator[Row]:
    from pyarrow import ipc

    number = chunk.first
    for batch in ipc.open_stream(chunk.payload):
        for fields in _dicts(batch, chunk.path, number):
            yield Row(f"{chunk.name}:{number}", f"{chunk.path}:{number}", fields)
            number += 1


def _dicts(batch: Any, path: str, first: int) -> Iterable[dict[str, Any] | Invalid]:
    """The rows as plain Python; one at a time where one of them cannot be that."""
    try:
        return cast("list[dict[str, Any] | Invalid]", batch.to_pylist())
    except (ValueError, OverflowError):
        return [_dict(batch.slice(i, 1), f"{path}:{first + i}") for i in range(batch.num_rows)]


def _dict(row: Any, where: str) -> dict[str, Any] | Invalid:
    try:
        return cast("dict[str, Any]", row.to_pylist()[0])
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        return Invalid(f"{where}: byte 0x{byte:02x} in a text is not UTF-8; repair or drop the row")
    except (ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        return Invalid(f"{where}: a value that Python cannot hold ({reason}); drop the row or the column")


def _utf8(content: bytes, path: str, first: int) -> str:
    """Raises DataError with the line, where `first` is that of the content, and the column."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start]
        start = before.rfind(b"\n") + 1
        line, column = first + before.count(b"\n"), len(before[start:].decode()) + 1
        raise DataError(
            f"{path}:{line}:{column}: byte 0x{content[error.start]:02x} is not UTF-8; "
            f"convert the file with iconv -f ENCODING -t UTF-8 (latin1 and utf-16 are frequent)"
        ) from error


CUT: dict[str, Callable[[File, BinaryIO], Iterator[Chunk]]] = {
    "text": _cut_text,
    "jsonl": _cut_lines,
    "parquet": _cut_parquet,
    "arrow": _cut_arrow,
}
PARSE: dict[str, Callable[[Chunk], Iterator[Row]]] = {
    "text": _text_rows,
    "jsonl": _line_rows,
    "oversize": _oversize_row,
    "arrow": _arrow_rows,
}
