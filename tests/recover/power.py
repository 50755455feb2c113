"""A power cut, simulated: which states of the disk may be found after it, given the calls that were made before.

What is not synced may be there or not, in any order: the data of a file (whole, cut short, or torn at 512 bytes) and
each change of a folder's names. The model is ALICE's (Pillai et al., OSDI 2014) without its file systems' promises.
"""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECTOR = 512
OUTSIDE = -1  # of the folder that is recorded


@dataclass
class Call:
    """file and folder are inode-like numbers, so that a rename does not confuse them."""

    what: str  # create, write, mkdir, rename, unlink, rmdir, fsync
    target: int  # what is changed: a file for write, a folder for the rest; of fsync either
    name: str = ""
    to: str = ""
    made: int = 0
    data: bytes = b""


@dataclass
class Recorded:
    """`os` for a Disk that works on the real folder `root` and notes what it is asked."""

    root: Path
    fail_at: int = -1  # the number of the call that raises `error`, once
    error: int = 0
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = os.path
        self._ids = {str(self.root): 0}
        self._next = 1
        self._open: dict[int, str] = {}
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self._maybe_fail(path)
        opened = os.open(path, flags, mode)
        self._open[opened] = str(path)
        if flags & os.O_CREAT:
            self._made("create", path)
        return opened

    def write(self, file: int, data: Any) -> int:
        self._maybe_fail(self._open[file])
        written = os.write(file, data)
        self.calls.append(Call("write", self._ids[self._open[file]], data=bytes(data[:written])))
        return written

    def fsync(self, file: int) -> None:
        self._maybe_fail(self._open[file])
        os.fsync(file)
        self.calls.append(Call("fsync", self._ids.get(self._open[file], OUTSIDE)))

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        self._maybe_fail(path)
        os.mkdir(path, mode)  # noqa: PTH102
        self._made("mkdir", path)

    def rename(self, old: Any, new: Any) -> None:
        self._maybe_fail(old)
        os.rename(old, new)  # noqa: PTH104
        old, new = Path(old), Path(new)
        self.calls.append(Call("rename", self._ids[str(old.parent)], old.name, new.name))
        for path in [path for path in self._ids if Path(path) == old or old in Path(path).parents]:
            self._ids[str(new / Path(path).relative_to(old))] = self._ids.pop(path)

    def unlink(self, path: Any) -> None:
        self._gone("unlink", path, os.unlink)

    def rmdir(self, path: Any) -> None:
        self._gone("rmdir", path, os.rmdir)

    def _gone(self, what: str, path: Any, call: Any) -> None:
        self._maybe_fail(path)
        call(path)
        self.calls.append(Call(what, self._ids[str(Path(path).parent)], Path(path).name))
        self._ids.pop(str(path))

    def _made(self, what: str, path: Any) -> None:
        self._ids[str(path)] = self._next
        self.calls.append(Call(what, self._ids[str(Path(path).parent)], Path(path).name, made=self._next))
        self._next += 1

    def _maybe_fail(self, path: Any) -> None:
        self._count += 1
        if self._count - 1 == self.fail_at:
            raise OSError(self.error, os.strerror(self.error), str(path))


def after_cut(calls: list[Call], at: int, chance: random.Random, into: Path) -> None:
    """Make in the new folder `into` one state that may be found after power is cut before call `at`."""
    kept, folders, files = calls[:at], {0: {}}, {}
    for number, call in enumerate(kept):
        synced = any(later.what == "fsync" and later.target == call.target for later in kept[number + 1 :])
        if call.what == "write":
            size = len(call.data) if synced else _torn(len(call.data), chance)
            files.setdefault(call.target, bytearray()).extend(call.data[:size])
            continue
        if call.what == "mkdir":
            folders.setdefault(call.made, {})
        if call.what == "create":
            files.setdefault(call.made, bytearray())
        if call.what != "fsync" and (synced or chance.random() < 0.5):
            _apply(call, folders.setdefault(call.target, {}))
    _write(into, 0, folders, files)


def _torn(size: int, chance: random.Random) -> int:
    return chance.choice([0, size, min(size, SECTOR * chance.randrange(1 + -(-size // SECTOR)))])


def _apply(call: Call, names: dict[str, int]) -> None:
    if call.what in ("create", "mkdir"):
        names[call.name] = call.made
    elif call.what == "rename" and call.name in names:
        names[call.to] = names.pop(call.name)
    elif call.what in ("unlink", "rmdir"):
        names.pop(call.name, None)


def _write(path: Path, number: int, folders: dict[int, dict[str, int]], files: dict[int, bytearray]) -> None:
    path.mkdir()
    for name, child in folders[number].items():
        if child in folders:
            _write(path / name, child, folders, files)
        else:
            (path / name).write_bytes(files[child])
