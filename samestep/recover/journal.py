"""The journal of a run: one event a line, append-only, each line with a checksum. One process writes it.

A line is a JSON object whose last key is `check`: XXH3 (64 bits, 16 hex digits) over the bytes of the line before
`,"check"`.

    {"event":"step","step":7,"loss":2.5,"check":"3f0c..."}\\n

A number that is not finite is written as null: JSON has no NaN, and a run whose loss is NaN must still be told.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import xxhash

from samestep.errors import ClusterError, DataError

_LINE = re.compile(rb'(\{.+),"check":"([0-9a-f]{16})"\}')


class Journal:
    """Appends events to the file `path`, made where it is missing.

    What a kill left of a last line is cut off first, so that the next one starts on a line of its own. A line that
    was written survives the death of the process at once, and that of the machine after `close`.
    """

    def __init__(self, path: Path) -> None:
        """Raises ClusterError where the file cannot be opened for writing."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise ClusterError(f"{path} cannot be opened for writing: {error.strerror}") from None
        os.ftruncate(self._file, _whole_lines(path))

    def write(self, event: Mapping[str, Any]) -> None:
        """Append `event` (JSON values under text keys, at least one, none of them `check`).

        Raises:
            ClusterError: the line could not be written; what was written of it is taken back.
        """
        line = encode(event)
        try:
            written = os.write(self._file, line)  # one call: a line is there whole, or it is the last and torn
        except OSError as error:
            raise ClusterError(f"{self.path} cannot be written: {error.strerror}") from None
        if written < len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise ClusterError(f"{self.path}: {written} of {len(line)} bytes could be written; free space on its disk")

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The events of the journal `path`, without their checksums. A last line without its newline is dropped.

    Raises:
        DataError: no journal there, or a line (named as `file:line`) that is not what was written.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a run folder with a journal") from None
    return [_decode(line, f"{path}:{number}") for number, line in enumerate(lines[:-1], start=1)]


def encode(event: Mapping[str, Any]) -> bytes:
    """The line of `event`, with its newline."""
    if not event or "check" in event:
        raise ValueError(f"an event has keys, and `check` is the journal's own: {event}")
    body = json.dumps(_finite(event), separators=(",", ":"), allow_nan=False)[:-1].encode("ascii")
    return body + b',"check":"%s"}\n' % _check(body)


def _decode(line: bytes, place: str) -> dict[str, Any]:
    found = _LINE.fullmatch(line)
    if found is None or found[2] != _check(found[1]):
        raise DataError(f"{place}: the line is not what was written there (its checksum differs); restore the file")
    event: dict[str, Any] = json.loads(found[1] + b"}")
    return event


def _check(body: bytes) -> bytes:
    digest: str = xxhash.xxh3_64_hexdigest(body)
    return digest.encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _whole_lines(path: Path) -> int:
    """Bytes up to the last newline. Reads the whole file: some MB, once a start."""
    return path.read_bytes().rfind(b"\n") + 1
