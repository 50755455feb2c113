"""Damage to a real checkpoint: bits flipped and files cut short, each to be refused where a resumed run reads it.

    scripts/flips [--flips 20000] [--cuts 400] [--seed 1] [--out FILE]

Prints JSON; exit code 1 if anything was loaded, or refused without the names of the file and of the tensor.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from samestep.errors import DataError
from samestep.launch.local import Local
from samestep.recover import checkpoint, stored
from samestep.recover.journal import Journal
from samestep.replica import run as replica
from samestep.verbs.prepare import prepare
from samestep.verbs.train import execute
from samestep.wire import loopback

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
SMALL = ["model.layers=1", "model.width=16", "model.vocabulary=260", "run.replicas=3"]
SHORT = 8192  # bytes: of a file that is no longer every length is tried


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=20_000)
    parser.add_argument("--cuts", type=int, default=400, help="lengths of each file that is not short")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="samestep-flips-") as folder:
        found = campaign(Loading(Path(folder)), asked.flips, asked.cuts, random.Random(asked.seed))
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")
    return bool(found["wrong"])


@dataclass(frozen=True)
class Damage:
    file: Path
    content: bytes
    what: str
    tensor: str | None  # that lost its bytes, if one did


class Loading:
    """A checkpoint that three replicas saved, and the two that read it again: the verb, then each replica."""

    def __init__(self, folder: Path) -> None:
        prepared = prepare(TINY, [*SMALL, "steps=2", "recover.checkpoint_every=2"], lambda line: None)
        self._all = folder / checkpoint.FOLDER
        job = replace(prepared.job("train", folder), finish=False)
        with Journal(folder / "journal.jsonl") as journal:
            execute(job, Local(), journal, [])
        self.files = sorted(checkpoint.folder_of(self._all, 2).iterdir())
        silent = SimpleNamespace(
            send=lambda event: None, phase=lambda step, phase: None, place=SimpleNamespace(local=0)
        )
        self._replica = replica.prepare(replace(job, checkpoint=checkpoint.folder_of(self._all, 2)), silent)
        self._replica.make(loopback.connect(1)[0])

    def refusal(self) -> str | None:
        """Why it is not loaded; None where it is, by either."""
        found, refused = checkpoint.newest(self._all)
        try:
            self._replica.checkpoints.resume()
        except DataError as error:
            return None if found else f"{refused[0]}; {error}"
        return None


def campaign(loading: Loading, flips: int, cuts: int, chance: random.Random) -> dict[str, object]:
    """Counts of all damages, and the sentences of those that were not refused as they should be."""
    began, counts, wrong = time.perf_counter(), Counter(), []
    assert loading.refusal() is None, "the checkpoint is not whole to begin with"
    for damage in (*flipped(loading.files, flips, chance), *shortened(loading.files, cuts, chance)):
        result, problem = judged(loading, damage)
        counts.update(result)
        wrong += [f"{damage.file.name}, {damage.what}: {problem}"] if problem else []
    assert loading.refusal() is None, "the damage was not undone"
    sizes = {file.name: file.stat().st_size for file in loading.files}
    seconds = round(time.perf_counter() - began, 1)
    return {"files": sizes} | dict(counts) | {"wrong": wrong, "seconds": seconds}


def judged(loading: Loading, damage: Damage) -> tuple[list[str], str | None]:
    """What to count, and what is wrong."""
    whole, kind = damage.file.read_bytes(), damage.what.partition(" ")[0]
    damage.file.write_bytes(damage.content)
    try:
        said = loading.refusal()
    except Exception as error:
        return [kind, "crashed"], f"{type(error).__name__}: {error}"
    finally:
        damage.file.write_bytes(whole)
    if said is None:
        return [kind, "accepted"], "it was loaded"
    named = {"refused": True, "named_file": said.count(str(damage.file)) == 2}
    if damage.tensor:
        named |= {"of_a_tensor": True, "named_tensor": said.count(f" {damage.tensor} is ") == 2}
    return [kind, *(key for key, true in named.items() if true)], None if all(named.values()) else said


def flipped(files: list[Path], count: int, chance: random.Random) -> Iterator[Damage]:
    """Each file as often as the others, a header as often as a quarter of its file."""
    for _ in range(count):
        file = chance.choice(files)
        whole, places = bytearray(file.read_bytes()), tensors(file)
        head = min((place.start for place in places.values()), default=0)
        at = chance.randrange(head) if head and chance.random() < 0.25 else chance.randrange(head, len(whole))
        whole[at] ^= 1 << chance.randrange(8)
        hit = (name for name, place in places.items() if place.start <= at < place.start + place.size)
        yield Damage(file, bytes(whole), f"flip of byte {at}", next(hit, None))


def shortened(files: list[Path], count: int, chance: random.Random) -> Iterator[Damage]:
    for file in files:
        whole, places = file.read_bytes(), tensors(file)
        head = min((place.start for place in places.values()), default=len(whole))
        short = len(whole) <= min(SHORT, 20 * count)
        for size in range(len(whole)) if short else sorted(chance.sample(range(len(whole)), count)):
            cut = (name for name, place in places.items() if head <= size < place.start + place.size)
            yield Damage(file, whole[:size], f"cut at byte {size}", next(cut, None))


def tensors(file: Path) -> dict[str, stored.Stored]:
    return stored.tensors(file) if file.suffix == ".safetensors" else {}


if __name__ == "__main__":
    sys.exit(main())
