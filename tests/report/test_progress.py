import io

from rich.console import Console

from samestep.report.progress import Lines, LivePanel, Speed, progress


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
