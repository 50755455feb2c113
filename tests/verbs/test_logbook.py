"""Who hears of what, and where it is written."""

import errno
import os
from pathlib import Path

import pytest

from samestep.recipe.schema import Recipe
from samestep.recover import journal
from samestep.recover.journal import Journal
from samestep.replica.job import Job
from samestep.verbs.logbook import Logbook


def test_hearers_are_told_when_the_journal_s_disk_refuses_and_when_it_has_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, line: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    heard: list[str | int] = []
    job = Job("train", Recipe(steps=9), tmp_path, [], tmp_path, 9, 9)
    with Journal(tmp_path / journal.NAME) as written:
        logbook = Logbook(job, written, [lambda event: heard.append(event.get("step", event["event"]))], {})
        for step in range(1, 6):
            with monkeypatch.context() as patch:
                if 2 <= step <= 3:
                    patch.setattr(os, "write", full)
                logbook.hear({"event": "step", "step": step})
        logbook.close()
    assert heard == [1, 2, "journal_failed", 3, 4, "journal_written", 5]
    events = journal.read(tmp_path / journal.NAME)
    assert [event.get("step", event["event"]) for event in events] == [
        1, "journal_failed", 2, 3, 4, "journal_written", 5,
    ]  # fmt: skip
