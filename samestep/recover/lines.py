"""Whole lines appended to a file, on a disk that may refuse them for a while."""

import errno
import os
from collections import deque
from pathlib import Path


class Lines:
    """Appends to the file `path`. What a kill left of a last line is cut off when it is opened. One process writes it.

    kept: lines that are not there yet, in order. size: bytes of those that are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: deque[bytes] = deque()
        self.size = 0
        self._file: int | None = None
        self._torn = False

    def open(self) -> int:
        """Make the file where it is missing. Raises OSError."""
        if self._file is None:
            self.path.touch(0o644)
            self.size, self._torn = whole(self.path), True
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._take_back(self._file)
        return self._file

    def deliver(self) -> None:
        """Append what is kept. Raises OSError at the first line that is refused; it and those after it stay."""
        while self.kept:
            self._append(self.kept[0])
            self.kept.popleft()

    def delete(self) -> None:
        """The file, and what is kept for it. Raises OSError."""
        self.kept.clear()
        self._release()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Raises OSError where what was written may not be on the disk."""
        try:
            if self._file is not None:
                os.fsync(self._file)
        finally:
            self._release()

    def _append(self, line: bytes) -> None:
        file = self.open()
        written = os.write(file, line)  # one call: a line is there whole, or it is the last and torn
        if written < len(line):
            self._torn = True
            self._take_back(file)
            raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes could be written", str(self.path))
        self.size += written

    def _take_back(self, file: int) -> None:
        """What there is of a torn line. Where the disk refuses even that it is done before the next one."""
        if self._torn:
            os.ftruncate(file, self.size)
            self._torn = False

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def whole(path: Path) -> int:
    """Bytes up to the last newline. Reads the whole file: some MB, once a start."""
    return path.read_bytes().rfind(b"\n") + 1
