"""Writing that survives a kill and a power cut, and says so before it returns.

What was written is on the disk only after an fsync of the file, and its name only after one of its folder (Pillai et
al., "All File Systems Are Not Created Equal", OSDI 2014). After a failed fsync the file is lost: the kernel may have
dropped its pages, and a second fsync would succeed on nothing (Rebello et al., "Can Applications Recover from fsync
Failures?", ATC 2020). So a file is never synced twice: it is written anew, under another name.
"""

import contextlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

PIECE = 1 << 24  # bytes of a file that is copied

Bytes = bytes | bytearray | memoryview


class Disk:
    """Each call is durable when it returns, and raises OSError when it is not. `system` has the calls of `os`."""

    def __init__(self, system: Any = os) -> None:
        self._os = system

    def write(self, path: Path, pieces: Iterable[Bytes]) -> None:
        """Create the file `path`, which must not exist. Its name is durable after `settle` of its folder.

        After an error nothing is left of it: on a full disk the next attempt needs the room.
        """
        file = self._os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._fill(file, pieces)
        except OSError:
            with contextlib.suppress(OSError):
                self._os.unlink(path)
            raise

    def _fill(self, file: int, pieces: Iterable[Bytes]) -> None:
        try:
            for piece in pieces:
                rest = memoryview(piece).cast("B")
                while rest:
                    rest = rest[self._os.write(file, rest) :]
            self._os.fsync(file)
        finally:
            self._os.close(file)

    def copy(self, old: Path, new: Path) -> None:
        """Write what the file `old` holds to the new file `new`, as `write` does."""
        with old.open("rb") as file:
            self.write(new, iter(partial(file.read, PIECE), b""))

    def sync(self, folder: Path) -> None:
        """Make the files in `folder`, which others wrote, durable, and the folders in it."""
        for path in sorted(folder.rglob("*"), reverse=True):
            self._settle(path, os.O_RDONLY)
        self.settle(folder)

    def make(self, folder: Path) -> None:
        """Create `folder`, which must not exist, in one that does."""
        self._os.mkdir(folder, 0o755)
        self.settle(folder.parent)

    def rename(self, old: Path, new: Path) -> None:
        """Both in one folder; `new` must not exist. At any time one of the names is there."""
        self._os.rename(old, new)
        self.settle(new.parent)

    def unlink(self, path: Path) -> None:
        """Delete a file."""
        self._os.unlink(path)

    def remove(self, folder: Path) -> None:
        """Delete `folder` and the files in it, if it is there."""
        if not folder.is_dir():
            return
        for name in sorted(self._os.listdir(folder)):
            self._os.unlink(folder / name)
        self._os.rmdir(folder)
        self.settle(folder.parent)

    def settle(self, folder: Path) -> None:
        """Make the names in `folder` durable."""
        self._settle(folder, os.O_RDONLY | os.O_DIRECTORY)

    def _settle(self, path: Path, flags: int) -> None:
        opened = self._os.open(path, flags | os.O_CLOEXEC)
        try:
            self._os.fsync(opened)
        finally:
            self._os.close(opened)
