"""The journal: what is written is read, and what was not written is never read."""

import errno
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import ClusterError, DataError
from samestep.recover.journal import NAME, Journal, encode, read

EVENTS = [{"event": "start", "lanes": [0, 1]}, {"event": "step", "step": 0, "loss": 2.5}, {"event": "end", "é": "\n"}]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
events = st.lists(
    st.dictionaries(st.text().filter(lambda key: key != "check"), values, min_size=1, max_size=4), max_size=4
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "journal.jsonl"


@settings(deadline=None)
@given(events)
def test_what_is_written_is_read(file: Path, events: list[dict[str, Any]]) -> None:
    file.unlink(missing_ok=True)
    for event in events:  # opened anew each time, as a resumed run does
        with Journal(file) as journal:
            journal.write(event)
    with Journal(file):
        assert read(file) == events


def test_a_line_is_plain_json_with_its_check_last() -> None:
    line = encode({"event": "step", "loss": 2.5})
    assert line == b'{"event":"step","loss":2.5,"check":"%s"}\n' % line[-19:-3]
    assert list(json.loads(line)) == ["event", "loss", "check"]


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write({"loss": math.nan, "norms": [math.inf, {"a": -math.inf}, 1.0], "spans": (1, 2)})
    assert read(tmp_path / "j") == [{"loss": None, "norms": [None, {"a": None}, 1.0], "spans": [1, 2]}]


@pytest.mark.parametrize("event", [{}, {"check": 1}])
def test_an_event_that_would_be_mistaken_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="an event has keys"):
        encode(event)


@pytest.mark.parametrize("kept", range(len(b"".join(map(encode, EVENTS))) + 1))
def test_a_journal_cut_anywhere_holds_its_whole_lines_and_goes_on(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(map(encode, EVENTS))[:kept])
    whole = path.read_bytes().count(b"\n")
    assert read(path) == EVENTS[:whole]
    with Journal(path) as journal:
        journal.write({"event": "resume"})
    assert read(path) == [*EVENTS[:whole], {"event": "resume"}]


def test_any_bit_changed_is_found_and_its_line_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    good = b"".join(map(encode, EVENTS))
    for bit in range(8 * (len(good) - 1)):  # the last newline is the one byte whose loss is a torn line
        line = good.count(b"\n", 0, bit // 8) + 1
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DataError, match=rf"journal\.jsonl:{line}: the line is not what was written there"):
            read(path)


def test_lines_swapped_out_for_others_are_found(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(encode(EVENTS[0]) + b'{"event":"step"}\n' + encode(EVENTS[1]))
    with pytest.raises(DataError, match=r"j:2: "):
        read(tmp_path / "j")


def test_a_missing_journal_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file or directory; give a run folder"):
        read(tmp_path / "journal.jsonl")
    with pytest.raises(ClusterError, match="cannot be opened for writing: No such file"):
        Journal(tmp_path / "none" / "journal.jsonl")


class Disks:
    """`os.write` on disks of which those in `full` take `room` bytes of a line."""

    def __init__(self) -> None:
        self.full: set[Path] = set()
        self.room = 0

    def write(self, file: int, line: bytes) -> int:
        if Path(f"/proc/self/fd/{file}").readlink().parent not in self.full:
            return WRITE(file, line)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return WRITE(file, line[: self.room])


WRITE = os.write
FULL = "No space left on device"


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Disks:
    disks = Disks()
    monkeypatch.setattr(os, "write", disks.write)
    return disks


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder, and its alternate beside it."""
    for name in ("run", "alternate"):
        (tmp_path / name).mkdir()
    return tmp_path / "run"


def kinds(events: list[dict[str, Any]]) -> list[Any]:
    return [event["step"] if event["event"] == "step" else event["event"] for event in events]


def step(number: int) -> dict[str, Any]:
    return {"event": "step", "step": number}


@pytest.mark.parametrize("room", [0, 5])
def test_lines_that_a_full_disk_refuses_are_kept_and_written_in_order_once_it_has_room(
    run: Path, disks: Disks, room: int
) -> None:
    with Journal(run / NAME) as journal:
        journal.write(step(1))
        disks.full, disks.room = {run}, room
        for number in (2, 3):
            journal.write(step(number))
            assert kinds(read(run / NAME)) == [1]
        disks.full = set()
        journal.write(step(4))
        assert kinds(read(run / NAME)) == [1, "journal_failed", 2, 3, 4, "journal_written"]


def test_it_is_told_once_when_the_disk_refuses_and_once_when_all_is_written(run: Path, disks: Disks) -> None:
    with Journal(run / NAME) as journal:
        journal.write(step(1))
        size = (run / NAME).stat().st_size
        disks.full = {run}
        journal.write(step(2))
        assert journal.told() == [{"event": "journal_failed", "reason": f"{run / NAME}: {FULL}", "bytes": size}]
        journal.write(step(3))
        assert journal.told() == []
        disks.full = set()
        journal.write(step(4))
        assert journal.told() == [{"event": "journal_written", "lines": 3}]
        journal.write(step(5))
        assert journal.told() == []


def test_a_line_that_was_written_in_part_is_taken_back(run: Path, disks: Disks) -> None:
    with Journal(run / NAME) as journal:
        journal.write(step(1))
        disks.full, disks.room = {run}, 5
        journal.write(step(2))
        assert (run / NAME).read_bytes() == encode(step(1))
        assert "5 of 53 bytes could be written" in journal.told()[0]["reason"]
        disks.full = set()


def test_what_could_not_be_taken_back_at_once_is_before_the_next_line(
    run: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal(run / NAME) as journal:
        journal.write(step(1))
        disks.full, disks.room = {run}, 5
        with monkeypatch.context() as broken:
            broken.setattr(os, "ftruncate", refuse)
            journal.write(step(2))
            journal.write(step(3))
        disks.full = set()
        journal.write(step(4))
    assert kinds(read(run / NAME)) == [1, "journal_failed", 2, 3, 4, "journal_written"]


def test_closing_tries_once_more(run: Path, disks: Disks) -> None:
    with Journal(run / NAME) as journal:
        disks.full = {run}
        journal.write(step(1))
        disks.full = set()
    assert kinds(read(run / NAME)) == ["journal_failed", 1, "journal_written"]


def test_lines_that_are_nowhere_at_the_end_are_counted(run: Path, disks: Disks) -> None:
    journal = Journal(run / NAME)
    disks.full = {run}
    journal.write(step(1))
    journal.write(step(2))
    with pytest.raises(ClusterError, match=rf"journal.jsonl lacks 3 lines \({FULL}\); free space on its disk, then"):
        journal.close()


def test_what_ended_a_run_is_said_before_the_lines_that_are_missing(run: Path, disks: Disks) -> None:
    with pytest.raises(ClusterError, match=r"replica 1 died; .* lacks 2 lines"), Journal(run / NAME) as journal:
        disks.full = {run}
        journal.write(step(1))
        raise ClusterError("replica 1 died")


def test_a_journal_that_cannot_be_synced_at_its_end_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = Journal(run / NAME)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ClusterError, match=r"may lack its last lines: Input/output error; look at its disk"):
        journal.close()


def test_what_is_refused_stands_in_the_alternate_until_it_is_written(run: Path, disks: Disks) -> None:
    alternate = run.parent / "alternate"
    with Journal(run / NAME, alternate) as journal:
        journal.write(step(1))
        assert not (alternate / NAME).exists()
        disks.full = {run}
        for number in (2, 3):
            journal.write(step(number))
            assert kinds(read(run / NAME)) == [1]
            assert kinds(read(run / NAME, alternate)) == [1, "journal_failed", *range(2, number + 1)]
        disks.full = set()
        journal.write(step(4))
        assert not (alternate / NAME).exists()
        assert kinds(read(run / NAME, alternate)) == [1, "journal_failed", 2, 3, 4, "journal_written"]


def test_a_run_whose_last_lines_are_in_the_alternate_ends_in_peace(run: Path, disks: Disks) -> None:
    alternate = run.parent / "alternate"
    with Journal(run / NAME, alternate) as journal:
        disks.full = {run}
        journal.write(step(1))
    assert kinds(read(run / NAME, alternate)) == ["journal_failed", 1]


def test_an_alternate_that_refuses_too_is_tried_again(run: Path, disks: Disks) -> None:
    alternate = run.parent / "alternate"
    journal = Journal(run / NAME, alternate)
    disks.full = {run, alternate}
    journal.write(step(1))
    disks.full = {run}
    journal.write(step(2))
    assert kinds(read(run / NAME, alternate)) == ["journal_failed", 1, 2]
    disks.full = {run, alternate}
    journal.write(step(3))
    with pytest.raises(ClusterError, match="lacks 4 lines"):
        journal.close()


def test_closing_tries_the_alternate_once_more_too(run: Path, disks: Disks) -> None:
    alternate = run.parent / "alternate"
    with Journal(run / NAME, alternate) as journal:
        disks.full = {run, alternate}
        journal.write(step(1))
        disks.full = {run}
    assert kinds(read(run / NAME, alternate)) == ["journal_failed", 1]


def test_lines_that_a_killed_life_left_in_the_alternate_come_first(run: Path, disks: Disks) -> None:
    alternate = run.parent / "alternate"
    killed = Journal(run / NAME, alternate)
    killed.write(step(1))
    disks.full = {run}
    killed.write(step(2))
    disks.full = set()
    with Journal(run / NAME, alternate) as journal:
        journal.write(step(3))
        assert kinds(read(run / NAME, alternate)) == [1, "journal_failed", 2, 3, "journal_written"]
    assert not (alternate / NAME).exists()


@pytest.mark.parametrize("caught_up", range(5))
def test_a_kill_while_it_catches_up_neither_loses_nor_repeats_a_line(run: Path, caught_up: int) -> None:
    alternate = run.parent / "alternate"
    aside = [{"event": "journal_failed", "bytes": 43}, step(1), step(1), step(2)]  # two may be equal
    before = [step(1)]
    (run / NAME).write_bytes(b"".join(map(encode, [*before, *aside[:caught_up]])))
    (alternate / NAME).write_bytes(b"".join(map(encode, aside)))
    assert read(run / NAME, alternate) == before + aside
    with Journal(run / NAME, alternate):
        pass
    assert kinds(read(run / NAME)) == kinds(before + aside) + ["journal_written"] * (caught_up < 4)
    assert not (alternate / NAME).exists()


def test_an_alternate_whose_file_cannot_be_deleted_repeats_no_line(run: Path, disks: Disks) -> None:
    alternate = run.parent / "alternate"
    with Journal(run / NAME, alternate) as journal:
        disks.full = {run}
        journal.write(step(1))
        left = (alternate / NAME).read_bytes()
        disks.full = set()
        journal.write(step(2))
        (alternate / NAME).write_bytes(left)
        assert kinds(read(run / NAME, alternate)) == ["journal_failed", 1, 2, "journal_written"]
        disks.full = {run}
        journal.write(step(3))
        disks.full = set()
    assert kinds(read(run / NAME, alternate))[3:] == ["journal_written", "journal_failed", 3, "journal_written"]


def test_a_changed_line_in_the_alternate_is_named(run: Path) -> None:
    alternate = run.parent / "alternate"
    (run / NAME).touch()
    (alternate / NAME).write_bytes(encode(step(1)).replace(b"1", b"2", 1))
    with pytest.raises(DataError, match=r"alternate/journal\.jsonl:1: the line is not what was written there"):
        read(run / NAME, alternate)


def test_all_of_it_is_synced_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with Journal(tmp_path / "j") as journal:
        journal.write(EVENTS[0])
    assert synced == [len(encode(EVENTS[0]))]


WRITER = """
import sys
from pathlib import Path
from samestep.recover.journal import Journal

journal = Journal(Path(sys.argv[1]))
for step in range(10**9):
    journal.write({"event": "step", "step": step})
    if step == 100:
        print(flush=True)
"""


def test_a_writer_killed_at_any_instant_leaves_every_line_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
        assert isinstance(writer.stdout, io.BufferedReader)
        writer.stdout.readline()
        writer.kill()
    steps = [event["step"] for event in read(path)]
    assert len(steps) > 100
    assert steps == list(range(len(steps)))
