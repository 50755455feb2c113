"""Where a replica's Python code is, asked from outside: it answers even while it waits in C or holds the GIL.

Python's faulthandler writes the answer from the signal handler itself. A replica in the kernel's state D answers when
the kernel lets go of it, which may be never.
"""

import faulthandler
import os
import re
import signal
import time
from pathlib import Path
from typing import NamedTuple

SIGNAL = signal.SIGUSR2
FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
LIBRARY = re.compile(r"<frozen|.*/lib/python3\.\d+/(?!site-packages|dist-packages)")
SHOWN = 5  # frames


class Frame(NamedTuple):
    file: str
    line: str
    function: str


def create() -> int:
    """A descriptor of fresh memory without a name, for a replica's answers; its engine keeps it and passes it on."""
    return os.memfd_create("samestep-stack")


def register(descriptor: int) -> None:
    """To be called by the replica, first of all: the signal would end a process that does not expect it."""
    faulthandler.register(SIGNAL, file=descriptor, all_threads=True, chain=False)


def ask(pid: int, descriptor: int, seconds: float = 0.5, *, resume: bool = False) -> str:
    """The stack of a replica's main thread as `tell` puts it; empty where there was no answer within `seconds`.

    resume: let a stopped process go on, for it cannot answer otherwise. It then also does what it was about to do,
    until the caller ends it: its peers must have closed their connections to it before. A sleep in C is cut short by
    the signal, so a replica may go on after an answer.
    """
    before = os.fstat(descriptor).st_size
    if not _expects(pid):
        return ""
    os.kill(pid, SIGNAL)
    if resume:
        os.kill(pid, signal.SIGCONT)
    deadline, text = time.monotonic() + seconds, ""
    while not is_whole(text) and time.monotonic() < deadline:
        time.sleep(0.005)
        text = os.pread(descriptor, 1 << 20, before).decode(errors="replace")
    return tell(parse(text))


def is_whole(text: str) -> bool:
    """Whether the answer has come to its end: to the last frame of the main thread, which has the last place."""
    _, _, main = text.rpartition("(most recent call first):\n")
    return main.endswith((" in <module>\n", "  ...\n")) or " in _run_module_as_main\n" in main


def parse(text: str) -> list[Frame]:
    """The frames of the thread that took the signal, which is the main thread; innermost first."""
    _, _, current = text.partition("Current thread ")
    block = current.partition("\n\n")[0]
    return [Frame(*match.groups()) for match in map(FRAME.fullmatch, block.splitlines()) if match]


def tell(frames: list[Frame]) -> str:
    """One line, such as: read at data/feed.py:88, called from micro_batch at data/feed.py:60. Of Python's own library
    the innermost frame is enough.
    """
    frames = frames[:1] + [frame for frame in frames[1:] if not LIBRARY.match(frame.file)]
    said = [f"{f.function} at {'/'.join(Path(f.file).parts[-2:])}:{f.line}" for f in frames[:SHOWN]]
    return ", called from ".join(filter(None, [*said[:1], ", ".join(said[1:])]))


def _expects(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (SIGNAL - 1) & 1)
