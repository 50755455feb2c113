"""Saves of each kind are killed before each of their calls, and each call is made to fail; see scripts/crashpoints."""

import argparse
import errno
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import kinds
import torch
from calls import ERRORS, Calls, Life, Point, Tell


class Save(Protocol):
    """A kind of save. `work` meets the kill or the error; `after` follows where the process goes on."""

    def prepare(self, run: Path) -> Path: ...
    def work(self, run: Path, tell: Tell) -> None: ...
    def after(self, run: Path, tell: Tell) -> None: ...
    def problems(self, run: Path, point: Point, life: Life, undisturbed: Life) -> list[str]: ...


@dataclass
class Result:
    """calls: of an undisturbed save. bad: what was wrong, and where."""

    kind: str
    calls: int
    kills: int = 0
    errors: int = 0
    bad: list[str] = field(default_factory=list)
    seconds: float = 0.0


def campaign(kind: str, save: Save, calls: Calls, errors: Sequence[int], into: Path) -> Result:
    began = time.monotonic()
    life, problems = end(save, calls, Point(), into, Life(0, []))
    found = Result(kind, len(life.calls), bad=[f"undisturbed: {problem}" for problem in problems])
    for point in points(found.calls, errors):
        _, problems = end(save, calls, point, into, life)
        found.bad += [f"{point} ({life.calls[point.number - 1]}): {problem}" for problem in problems]
        found.errors += bool(point.error)
        found.kills += not point.error
    found.seconds = round(time.monotonic() - began, 1)
    return found


def points(calls: int, errors: Sequence[int]) -> Iterator[Point]:
    """A kill, each error once, and a disk that is full from then on."""
    for number in range(1, calls + 1):
        yield Point(number)
        yield from (Point(number, error) for error in errors)
        if errno.ENOSPC in errors:
            yield Point(number, errno.ENOSPC, stays=True)


def end(save: Save, calls: Calls, point: Point, into: Path, undisturbed: Life) -> tuple[Life, list[str]]:
    """What one life told, and what is wrong after it."""
    run = into / "run"
    watched = save.prepare(run)
    life = calls.child(partial(save.work, run), partial(save.after, run), watched, point)
    problems = save.problems(run, point, life, undisturbed if point.number else life)
    shutil.rmtree(run)
    return life, problems


def table(results: Sequence[Result]) -> str:
    rows = [("kind", "calls", "kills", "errors", "bad", "seconds")]
    rows += [(r.kind, r.calls, r.kills, r.errors, len(r.bad), r.seconds) for r in results]
    return "\n".join(f"{row[0]:<16}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    parser.add_argument("--kinds", nargs="+", choices=kinds.KINDS, default=list(kinds.KINDS))
    names = [errno.errorcode[error] for error in ERRORS]
    parser.add_argument("--errors", nargs="*", choices=names, default=names)
    return parser.parse_args()


def main() -> int:
    """0 where nothing was bad."""
    asked, results = arguments(), []
    torch.set_num_threads(1)
    memory = Path("/dev/shm")  # a kill leaves what was written, synced or not, so no disk is needed
    with tempfile.TemporaryDirectory(prefix="samestep-crash-", dir=memory if memory.is_dir() else None) as folder:
        into = Path(folder).resolve()
        calls = Calls(into)
        for kind in asked.kinds:
            make: Callable[[Path], Save] = kinds.KINDS[kind]
            save = make(into / f"{kind}.made")
            results.append(campaign(kind, save, calls, [getattr(errno, name) for name in asked.errors], into))
            print(f"{kind}: {results[-1].seconds} s", file=sys.stderr)
    print(json.dumps({"results": [asdict(result) for result in results]}) if asked.json else table(results))
    if not asked.json:
        print(*(f"{result.kind}: {bad}" for result in results for bad in result.bad), sep="\n")
    return any(result.bad for result in results)


if __name__ == "__main__":
    sys.exit(main())
