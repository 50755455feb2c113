"""The journal: what is written is read, and what was not written is never read."""

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
from samestep.recover.journal import Journal, encode, read

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


def test_a_line_that_was_written_in_part_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Journal(tmp_path / "j") as journal:
        journal.write(EVENTS[0])
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:5]))
        with pytest.raises(ClusterError, match=r"j: 5 of \d+ bytes could be written; free space on its disk"):
            journal.write(EVENTS[1])
        monkeypatch.undo()
        journal.write(EVENTS[2])
    assert read(tmp_path / "j") == [EVENTS[0], EVENTS[2]]


def test_all_of_it_is_synced_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with Journal(tmp_path / "j") as journal:
        journal.write(EVENTS[0])
    assert synced == [len(encode(EVENTS[0]))]


def test_a_write_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    with Journal(tmp_path / "j") as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ClusterError, match="j cannot be written: No space left on device"):
            journal.write(EVENTS[0])


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
