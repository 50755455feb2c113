"""The pictures of the documentation, from one fresh run: its report, and its panel on a terminal.

    scripts/screenshots [--to docs]

Writes report.png (the first 1,640 pixels) and panel.png.
"""

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from samestep.recover import journal
from samestep.report.progress import LivePanel, show
from tests.report.conftest import looking

ROOT = Path(__file__).parents[2]
STEPS, REPLICAS, SHOWN = 160, 3, 96
TALL, WIDE = 1640, 860  # pixels of the report; of the panel
PAGE = (
    "<!doctype html><meta charset=utf-8><body style='margin:0;padding:14px 18px;background:{background}'>"
    "<pre style=\"margin:0;color:{foreground};font:14px/1.25 'DejaVu Sans Mono',monospace\">{code}</pre>"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "docs")
    to = parser.parse_args().to
    with tempfile.TemporaryDirectory() as folder, looking(_profile(Path(folder))) as look:
        run = trained(Path(folder) / "tiny")
        keep(look(run / "report.html", most=TALL).picture, to / "report.png")
        panel(run, page := Path(folder) / "panel.html")
        keep(look(page, width=WIDE, height=100).picture, to / "panel.png")


def _profile(folder: Path) -> Path:
    (folder / "chromium").mkdir()
    return folder / "chromium"


def trained(run: Path) -> Path:
    """A run that evaluates, saves, and is reported."""
    recipe, changes = ROOT / "recipes" / "tiny.yaml", ["evaluate.every=20", "recover.checkpoint_every=40"]
    command = [sys.executable, "-m", "samestep.cli", "train", str(recipe), f"steps={STEPS}", *changes]
    subprocess.run([*command, "--replicas", str(REPLICAS), "--run", str(run)], check=True, cwd=ROOT)
    return run


def panel(run: Path, page: Path) -> None:
    """As it was after step SHOWN, with what had been said above it."""
    console = Console(record=True, width=92, file=io.StringIO(), force_terminal=True)
    live = LivePanel(Console(file=io.StringIO()), run.name, STEPS, REPLICAS)
    live.note = console.print
    for event in journal.read(run / "journal.jsonl"):
        show(live, event)
        if event["event"] == "step" and event["step"] == SHOWN:
            console.print(live.panel(event))
            break
    live.close()
    html = console.export_html(theme=MONOKAI, inline_styles=True, code_format=PAGE)
    page.write_text(html, encoding="utf-8")


def keep(picture: Path, to: Path) -> None:
    """In 256 colours where Pillow is there: a quarter of the bytes."""
    try:
        from PIL import Image
    except ImportError:
        to.write_bytes(picture.read_bytes())
    else:
        Image.open(picture).convert("RGB").quantize(256).save(to, optimize=True)
    print(f"{to}: {to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
