"""The journal of a run: one event a line, append-only, each line with a checksum. One process writes it.

A line is a JSON object whose last key is `check`: XXH3 (64 bits, 16 hex digits) over the bytes of the line before
`,"check"`.

    {"event":"step","step":7,"loss":2.5,"check":"3f0c..."}\\n

A number that is not finite is written as null: JSON has no NaN, and a run whose loss is NaN must still be told.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import xxhash

from samestep.errors import ClusterError, DataError, SamestepError
from samestep.events import Event
from samestep.recover.lines import Lines

NAME = "journal.jsonl"  # in the run folder, and in its alternate

_LINE = re.compile(rb'(\{.+),"check":"([0-9a-f]{16})"\}')


class Journal:
    """Appends events to the file `path`, made where it is missing.

    What a kill left of a last line is cut off first, so that the next one starts on a line of its own. A line that
    was written survives the death of the process at once, and that of the machine after `close`.

    A line that the disk refuses is kept, and tried again before the next one; until then it stands in the folder
    `alternate` too, if there is one. `told` says when that begins and when it is over, and so does the journal.
    """

    def __init__(self, path: Path, alternate: Path | None = None) -> None:
        """Lines that an earlier life has left in `alternate` come first.

        Raises ClusterError where `path` cannot be opened for writing.
        """
        self.path = path
        self._own, self._aside = Lines(path), Lines(alternate / NAME) if alternate else None
        self._failing, self._late, self._reason = False, 0, ""  # late: lines that had to wait since it has failed
        self._told: list[Event] = []
        try:
            self._own.open()
            self._take_up()
        except OSError as error:
            raise ClusterError(f"{error.filename or path} cannot be opened for writing: {error.strerror}") from None

    def write(self, event: Mapping[str, Any]) -> None:
        """Append `event` (JSON values under text keys, at least one, none of them `check`), or keep it for later."""
        line = encode(event)
        self._own.kept.append(line)
        if not self._delivered():
            self._put_aside(line)

    def told(self) -> list[Event]:
        """What has happened to the journal itself since the last call; it stands there already, or will."""
        told, self._told = self._told, []
        return told

    def close(self) -> None:
        """Try what is kept once more. Raises ClusterError where lines stand nowhere, or may not be on the disk."""
        self._delivered()
        self._copy()
        try:
            with contextlib.ExitStack() as stack:
                for file in filter(None, (self._own, self._aside)):
                    stack.callback(file.close)
        except OSError as error:
            raise ClusterError(f"{self.path} may lack its last lines: {error.strerror}; look at its disk") from None
        missing = len(self._own.kept)
        if missing and (self._aside is None or self._aside.kept):
            raise ClusterError(
                f"{self.path} lacks {missing} lines ({self._reason}); free space on its disk, then resume"
            )

    def _take_up(self) -> None:
        """What an earlier life has put aside. All of it may be here already: that life ended before it deleted them."""
        if self._aside is not None and self._aside.path.exists():
            self._own.kept.extend(lacking(_lines(self.path), _lines(self._aside.path)))
            self._late = len(self._own.kept)
            if not self._late:
                self._drop(self._aside)

    def _delivered(self) -> bool:
        try:
            self._own.deliver()
        except OSError as error:
            self._reason = error.strerror or str(error)
            return False
        if self._late:
            self._caught_up()
        return True

    def _put_aside(self, line: bytes) -> None:
        new = [line]
        if not self._failing:
            self._failing = True
            # Its size makes this line one of its kind: where it stands in both files, they are compared from there on.
            event = {"event": "journal_failed", "reason": f"{self.path}: {self._reason}", "bytes": self._own.size}
            self._told.append(event)
            new.insert(0, encode(event))
            self._own.kept.insert(len(self._own.kept) - 1, new[0])
        self._late += len(new)
        if self._aside is not None:
            self._aside.kept.extend(new)
        self._copy()

    def _copy(self) -> None:
        if self._aside is not None:
            with contextlib.suppress(OSError):  # they are kept here all the same, and `close` counts them
                self._aside.deliver()

    def _caught_up(self) -> None:
        event = {"event": "journal_written", "lines": self._late}
        self._failing, self._late = False, 0
        self._drop(self._aside)
        self._told.append(event)
        self.write(event)

    def _drop(self, aside: Lines | None) -> None:
        if aside is not None:
            with contextlib.suppress(OSError):  # whoever reads it knows its lines again
                aside.delete()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except ClusterError as missing:
            if isinstance(error, SamestepError):  # the first cause is not hidden by what follows from it
                missing.args = (f"{error}; {missing}",)
            raise


def read(path: Path, *alternates: Path) -> list[Event]:
    """The events of the journal `path`, without their checksums, then those that it lacks so far of the lines in the
    folders `alternates`. A last line without its newline is dropped.

    Raises:
        DataError: no journal there, or a line (named as `file:line`) that is not what was written.
    """
    there, events = _checked(path)
    for file in [folder / NAME for folder in alternates]:
        if file.exists():
            aside, told = _checked(file)
            events += told[len(aside) - len(lacking(there, aside)) :]
    return events


def lacking(there: Iterable[bytes], aside: Iterable[bytes]) -> list[bytes]:
    """The end of `aside` that is not in `there` yet, where its beginning may be, in order and among other lines."""
    rest = iter(there)
    return [line for line in aside if line not in rest]  # a search goes on where the one before it ended


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


def _checked(path: Path) -> tuple[list[bytes], list[Event]]:
    try:
        lines = _lines(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a run folder with a journal") from None
    return lines, [_decode(line[:-1], f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _lines(path: Path) -> list[bytes]:
    """With their newlines; a last one that is torn is dropped."""
    return [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]]
