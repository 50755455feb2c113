import io

import pytest
from rich.console import Console

from samestep.report.progress import Lines, LivePanel, Speed, progress, reading, show


def step(number, loss=2.0, tokens=1000, seconds=0.5):
    return {"step": number, "loss": loss, "tokens": tokens, "seconds": seconds}


def test_speed_is_that_of_the_recent_steps():
    speed = Speed()
    for _ in range(100):
        speed.add(1, 100.0)
    for _ in range(20):
        speed.add(1000, 0.5)
    assert speed.tokens_per_second == 2000
    assert speed.seconds_for(10) == 5


def test_lines_come_first_last_and_every_few_steps():
    written = []
    lines = Lines(written.append, 25, 3, 10)
    for number in range(1, 26):
        lines.step(step(number))
    lines.close()
    assert [line.split()[1] for line in written] == ["1/25", "10/25", "20/25", "25/25"]
    assert written[1] == "step 10/25  loss 2.0000  2,000 tokens/s  7.5 s left  3 replicas"


def test_no_terminal_gets_lines_and_a_terminal_the_panel():
    quiet = Console(file=io.StringIO(), force_terminal=False)
    assert isinstance(progress(quiet, "x", 5, 2, 1), Lines)
    loud = Console(file=io.StringIO(), force_terminal=True)
    panel = progress(loud, "x", 5, 2, 1)
    panel.close()
    assert isinstance(panel, LivePanel)


def test_the_panel_shows_what_a_person_waits_for():
    out = io.StringIO()
    panel = LivePanel(Console(file=out, force_terminal=True, width=100), "quickstart", 10, 2)
    panel.step(step(4, loss=3.14159))
    panel.close()
    shown = out.getvalue()
    for word in ("quickstart", "4/10", "3.1416", "2,000", "3.0 s", "replicas"):
        assert word in shown


def test_reading_shows_each_source_and_its_bytes_on_a_terminal():
    out = io.StringIO()
    with reading(Console(file=out, force_terminal=True, width=100)) as done:
        done("chats.jsonl", 1_500_000)
        done("docs", 2_000_000)
        done("chats.jsonl", 3_000_000)
    shown = out.getvalue()
    for word in ("tokenizing chats.jsonl", "tokenizing docs", "3.0", "2.0", "MB"):
        assert word in shown


def test_reading_is_quiet_where_no_terminal_is():
    out = io.StringIO()
    with reading(Console(file=out, force_terminal=False)) as done:
        done("chats.jsonl", 1_500_000)
    assert out.getvalue() == ""


def test_reading_leaves_the_terminal_in_order_after_an_error():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with pytest.raises(OSError, match="gone"), reading(console) as done:
        done("docs", 1)
        raise OSError("gone")
    with reading(console):  # rich refuses a second live display while one is left
        pass
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().find("\x1b[?25l")  # the cursor is shown again


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {"event": "journal_failed", "reason": "run/journal.jsonl: No space left on device", "bytes": 9},
            "journal: run/journal.jsonl: No space left on device; training goes on, and its lines are kept and tried "
            "again",
        ),
        (
            {"event": "journal_written", "lines": 12},
            "journal: its disk takes lines again, the 12 that were kept are there",
        ),
        (
            {"event": "checkpoint", "step": 4, "refused": "run/c has refused a part of it", "folder": "other/c/step-4"},
            "checkpoint of step 4: run/c has refused a part of it; it is in other/c/step-4",
        ),
    ],
)
def test_what_a_disk_has_refused_is_said_and_where_it_is(event, line):
    written = []
    show(Lines(written.append, 25, 3, 10), event)
    assert written == [line]


def test_a_replica_that_can_share_no_memory_is_named_with_the_reason():
    said = []
    event = {"event": "shared_memory_failed", "rank": 2, "reason": "no memory to share could be had (why)"}
    show(Lines(said.append, 1, 3, 1), event)
    assert said == [f"replica 2: {event['reason']}; its messages go through sockets, which is slower"]
