"""The calls of this process that change a folder: listed, killed before, or made to fail (crash.c)."""

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE)

Event = dict[str, Any]
Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Point:
    """Before call `number` (from 1; 0: none) a kill, or with `error` its failure; `stays`: of all later ones too."""

    number: int = 0
    error: int = 0
    stays: bool = False

    def __str__(self) -> str:
        what = errno.errorcode[self.error] if self.error else "kill"
        return f"{what} {'from' if self.stays else 'at'} call {self.number}"


@dataclass(frozen=True)
class Life:
    """What a child ended with, -9 for the kill, and all it told."""

    code: int
    events: list[Event]

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event["event"] in kinds]

    @property
    def calls(self) -> list[str]:
        """What was called, and the path below the folder."""
        return [call for event in self.of("calls") for call in event["calls"]]


class Calls:
    def __init__(self, into: Path) -> None:
        """Compiles crash.c into the folder `into`."""
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            sys.exit("crashpoints needs Linux and a C compiler, and there is no cc here; nothing was checked")
        library, source = into / "crash.so", Path(__file__).with_name("crash.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self._library = ctypes.CDLL(str(library))
        self._library.crash_calls.restype = ctypes.c_char_p

    def child(self, work: Callable[[Tell], None], after: Callable[[Tell], None], folder: Path, point: Point) -> Life:
        """Do `work` in a fork with `folder` watched, and if it comes back `after` with calls as usual."""
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            self._in_child(work, after, writing, folder, point)
        os.close(writing)
        with os.fdopen(reading, "rb") as told:
            events = [json.loads(line) for line in told.read().splitlines()]
        return Life(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), events)

    def _in_child(
        self, work: Callable[[Tell], None], after: Callable[[Tell], None], writing: int, folder: Path, point: Point
    ) -> None:
        def tell(event: Event) -> None:
            os.write(writing, json.dumps(event).encode() + b"\n")

        code = 1
        try:
            if failed := self._library.crash_watch():
                raise OSError(failed, "system calls cannot be watched here")
            self._library.crash_arm(os.fsencode(folder), point.number, point.error, point.stays)
            try:
                work(tell)
            finally:
                tell({"event": "calls", "calls": self._library.crash_calls().decode().splitlines()})
                self._library.crash_arm(b"", 0, 0, 0)
            after(tell)
            code = 0
        except BaseException as error:
            tell({"event": "raised", "reason": f"{type(error).__name__}: {error}"})
        os._exit(code)
