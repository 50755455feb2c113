"""A copy of the code to plant a bug in, and the tests run there."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
COPIED = ("samestep", "tests", "scripts", "recipes", "examples", "pyproject.toml")  # the rest is linked: it is large
TEST = 100  # seconds for one test: a bug may make it wait for ever
PYTEST = ("-x", "--tb=short", "-rfE", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-o", f"timeout={TEST}")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::[^\[\s]+)(?:.*? - (.*))?", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What pytest ended with. test: the first that failed, and in what words; None where none did."""

    code: int
    seconds: float
    test: str | None
    reason: str
    output: str


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A folder like the repository, whose code may be changed. Nothing that was started in it is left at the end."""
    with tempfile.TemporaryDirectory(prefix="samestep-bug-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder).resolve() / "code"
        copy.mkdir()
        for path in ROOT.iterdir():
            if path.name not in COPIED:
                (copy / path.name).symlink_to(path)
            elif path.is_dir():
                shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(path, copy)
        try:
            yield copy
        finally:
            _end_all_of(copy)


def tested(copy: Path, targets: Sequence[str], limit: float) -> Outcome:
    """Run these tests on the code in `copy`."""
    command = [sys.executable, "-m", "pytest", *PYTEST, f"--basetemp={copy.parent / 'work'}", *targets]
    began = time.monotonic()
    with (copy.parent / "output").open("w+") as output:
        process = subprocess.Popen(
            command, cwd=copy, stdout=output, stderr=subprocess.STDOUT, env=_environment(copy), start_new_session=True
        )
        try:
            code = process.wait(limit)
        finally:  # also at Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = round(time.monotonic() - began, 1)
        output.seek(0)
        told = output.read()
    found = FAILED.search(told)
    return Outcome(code, seconds, found and found[1], (found and found[2]) or "", told)


def _environment(copy: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}


def _end_all_of(copy: Path) -> None:
    """A planted bug may leave replicas, each with a session of its own; they are known by their code."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("PYTHONPATH") == str(copy):
                process.kill()
