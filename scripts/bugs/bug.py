"""A bug that somebody might make, as data, and the tests that should see it."""

from dataclasses import dataclass
from pathlib import Path


class Stale(Exception):
    """The list no longer fits the code."""


@dataclass(frozen=True)
class Bug:
    """name: what is wrong, in plain words. file: in samestep/. old: stands there once. tests: below tests/, narrow."""

    name: str
    file: str
    old: str
    new: str
    tests: str  # files or ids, separated by spaces

    @property
    def targets(self) -> list[str]:
        return [f"tests/{test}" for test in self.tests.split()]

    def planted(self, root: Path) -> str:
        """The file below `root` with the bug in it. Stale if the place is not found, or the result is no Python."""
        text = (root / "samestep" / self.file).read_text()
        if text.count(self.old) != 1:
            raise Stale(f"{self.name}: samestep/{self.file} holds {self.old!r} {text.count(self.old)} times, not once")
        changed = text.replace(self.old, self.new)
        try:
            compile(changed, self.file, "exec")
        except SyntaxError as error:
            raise Stale(f"{self.name}: samestep/{self.file} with the bug is no Python: {error}") from error
        return changed
