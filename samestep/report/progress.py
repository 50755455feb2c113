"""The live panel of a run on a terminal; one plain line every few steps elsewhere."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress import DownloadColumn, SpinnerColumn, TaskID, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from samestep import units
from samestep.events import Event
from samestep.report.notes import note

RECENT = 20  # steps over which speed is averaged


class Speed:
    """Tokens and seconds of the recent steps."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def add(self, tokens: int, seconds: float) -> None:
        self._recent.append((tokens, seconds))

    @property
    def tokens_per_second(self) -> float:
        return sum(t for t, _ in self._recent) / max(1e-9, sum(s for _, s in self._recent))

    def seconds_for(self, steps: int) -> float:
        return steps * sum(s for _, s in self._recent) / max(1, len(self._recent))


class Progress(Protocol):
    """Shows a run as it goes on, until it is closed. replicas: those that take part now."""

    replicas: int

    def step(self, event: Event) -> None:
        """A step is committed."""

    def note(self, message: str) -> None:
        """Something that the user should know has happened."""

    def close(self) -> None:
        """Leave the terminal in order."""


class Lines:
    """For logs: the first step, then one line every `every` steps, and the last."""

    def __init__(self, write: Callable[[str], None], steps: int, replicas: int, every: int) -> None:
        self._write, self._steps, self.replicas, self._every = write, steps, replicas, every
        self._speed = Speed()

    def step(self, event: Event) -> None:
        self._speed.add(event["tokens"], event["seconds"])
        step = event["step"]
        if step == 1 or step == self._steps or step % self._every == 0:
            self._write(
                f"step {step}/{self._steps}  loss {event['loss']:.4f}  "
                f"{self._speed.tokens_per_second:,.0f} tokens/s  "
                f"{units.duration(self._speed.seconds_for(self._steps - step))} left  {self.replicas} replicas"
            )

    def note(self, message: str) -> None:
        self._write(message)

    def close(self) -> None:
        """Nothing is held."""


class LivePanel:
    """For terminals: one panel, redrawn at each step."""

    def __init__(self, console: Console, title: str, steps: int, replicas: int) -> None:
        self._title, self._steps, self.replicas = title, steps, replicas
        self._speed = Speed()
        self._live = Live(self.panel(None), console=console, auto_refresh=False)
        self._live.start(refresh=True)

    def step(self, event: Event) -> None:
        self._speed.add(event["tokens"], event["seconds"])
        self._live.update(self.panel(event), refresh=True)

    def note(self, message: str) -> None:
        self._live.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()

    def panel(self, event: Event | None) -> Panel:
        """After a step; None: before the first."""
        if event is None:
            return Panel(Text(f"starting {self.replicas} replicas"), title=self._title, title_align="left")
        left = self._steps - event["step"]
        table = Table.grid(padding=(0, 3), expand=True)
        table.add_row("step", "loss", "tokens/s", "time left", "replicas", style="dim")
        table.add_row(
            f"{event['step']}/{self._steps}",
            f"{event['loss']:.4f}",
            f"{self._speed.tokens_per_second:,.0f}",
            units.duration(self._speed.seconds_for(left)),
            str(self.replicas),
        )
        grid = Table.grid(expand=True)
        grid.add_row(table)
        grid.add_row(ProgressBar(total=self._steps, completed=event["step"]))
        return Panel(grid, title=self._title, title_align="left")


def show(panel: Progress, event: Event) -> None:
    """What of an event the user should see."""
    if event["event"] == "formed":
        panel.replicas = event["replicas"]
    if event["event"] == "step":
        panel.step(event)
    elif said := note(event):
        panel.note(said)


@contextmanager
def reading(console: Console) -> Iterator[Callable[[str, int], None]]:
    """Shows how much of each source is tokenized, on a terminal; to be called with a source and its bytes done."""
    columns = SpinnerColumn(), TextColumn("tokenizing {task.description}"), DownloadColumn(), TransferSpeedColumn()
    bars: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:

        def done(source: str, size: int) -> None:
            if source not in bars:
                bars[source] = shown.add_task(source, total=None)
            shown.update(bars[source], completed=size)

        yield done


def progress(console: Console, title: str, steps: int, replicas: int, every: int) -> Progress:
    if console.is_terminal:
        return LivePanel(console, title, steps, replicas)
    return Lines(
        lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True), steps, replicas, every
    )
