"""Saves of model folders: what stands there is the old one or the new one, whole, or it is absent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from calls import Life, Point, Tell

from samestep.model.task import Task
from samestep.recover.folders import tidy
from samestep.replica.saving import save
from samestep.verbs.export import export

Content = dict[str, bytes]
Write = Callable[[Path], None]


class Model:
    """A replica's save of the folder `name` of a run. old: writes what stood there before, if anything did."""

    def __init__(self, name: str, old: Write | None, new: Write) -> None:
        self._name, self._old, self._new = name, old, new
        self._before: Content | None = None
        self._wanted: Content | None = None

    def prepare(self, run: Path) -> Path:
        run.mkdir()
        if self._old is not None:
            self._save(run, self._old)
        self._before = content(run / self._name)
        return run

    def work(self, run: Path, tell: Tell) -> None:
        self._save(run, self._new)

    def after(self, run: Path, tell: Tell) -> None:
        tell({"event": "saved"})

    def problems(self, run: Path, point: Point, life: Life, undisturbed: Life) -> list[str]:
        folder = run / self._name
        if not point.number:
            self._wanted = content(folder)
            return exposed(life.calls, self._name, self._wanted or {}) + [str(event) for event in life.of("raised")]
        found = self._ended(point, life, content(folder))
        tidy(folder)
        found += self._stands(content(folder), absent=self._before is None)
        found += self._left(run)
        self._again(run)
        return found + ([] if content(folder) == self._wanted else ["the next save is not whole"]) + self._left(run)

    def _ended(self, point: Point, life: Life, there: Content | None) -> list[str]:
        """How the process ended, and what it says of what is there."""
        if not point.error:
            return ([] if life.code == -9 else [f"the process ended with {life.code}"]) + self._stands(there, True)
        said = [event["reason"] for event in life.of("raised")]
        found = self._stands(there, self._before is None)
        if not said and there != self._wanted:
            found.append("it says nothing of its failure")
        return found + [f"no error in words: {reason}" for reason in said if not _in_words(reason)]

    def _stands(self, there: Content | None, absent: bool) -> list[str]:
        fine = [self._wanted, self._before, None] if absent else [self._wanted, self._before]
        return [] if there in fine else [f"neither the old nor the new: {sorted(there) if there else there}"]

    def _left(self, run: Path) -> list[str]:
        return [f"left over: {path.name}" for path in sorted(run.iterdir()) if path.name != self._name]

    def _save(self, run: Path, write: Write) -> None:
        no: Any = None
        save(Task(no, no, no, no, no, no, write, no), run / self._name)

    def _again(self, run: Path) -> None:
        self._save(run, self._new)


class Export(Model):
    """samestep export of the finished run `source`."""

    def __init__(self, source: Path, merge: bool) -> None:
        super().__init__("exported", None, lambda folder: None)
        self._source, self._merge = source, merge

    def work(self, run: Path, tell: Tell) -> None:
        export(self._source, run / self._name, self._merge)

    def _again(self, run: Path) -> None:
        if not (run / self._name).exists():
            export(self._source, run / self._name, self._merge)


def _in_words(reason: str) -> bool:
    return reason.startswith("ClusterError: ") and "cannot be written" in reason


def content(folder: Path) -> Content | None:
    """Every file below `folder`; None where that is not there."""
    if not folder.is_dir():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def exposed(calls: list[str], name: str, files: Content) -> list[str]:
    """Files whose last call before the folder got its name was no sync: a power cut could empty them."""
    last: dict[str, str] = {}
    for what, _, path in (call.partition(" ") for call in calls):
        if what == "rename" and path.count("/") == 1 and path.startswith(f"/.{name}-new-"):
            return [f"not synced: {file}" for file in files if last.get(f"{path}/{file}") != "fsync"]
        last[path] = what
    return ["the folder never got its name"]
