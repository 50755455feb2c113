"""Saves of a checkpoint by two replicas, through what does them in a run, and what must be true after each end."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from calls import Event, Life, Point, Tell
from torch import nn

from samestep.errors import DataError
from samestep.model.optim import AdamW
from samestep.recipe.load import load
from samestep.recover import checkpoint, journal
from samestep.recover.checkpoint import Saved
from samestep.recover.disk import Disk
from samestep.recover.journal import Journal
from samestep.replica.checkpoints import TRIES, Checkpoints
from samestep.replica.job import Job
from samestep.replica.split import WHOLE, Split
from samestep.replica.state import State
from samestep.sync.exact import share
from samestep.sync.slices import layout
from samestep.verbs.logbook import Logbook

RECIPE = Path(__file__).parents[2] / "recipes/tiny.yaml"
LANES, REPLICAS = 8, 2
BEFORE, SAVED, NEXT, LAST = 1, 2, 3, 4  # steps: before the end, the one that meets it, and two after it
UNSAVED = ("save_failed", "checkpoint_failed", "rotation_failed")


@dataclass
class Trained:
    """In the place of a Step."""

    state: State
    shapes: dict[str, list[int]]
    number: int = 0
    split: Split = WHOLE

    def check(self) -> None:
        """It never rests: it is filled anew for each save."""


@dataclass
class Watched:
    """In the place of a Watch."""

    trained: Trained

    def state(self) -> dict[str, Any]:
        return {"step": self.trained.number}


@dataclass
class Line:
    """In the place of a Control: what a replica tells the engine."""

    rank: int
    events: list[Event] = field(default_factory=list)

    def send(self, event: Event) -> None:
        self.events.append(event | {"rank": self.rank})

    def phase(self, step: int, phase: Any) -> None:
        pass


@dataclass(frozen=True)
class Wire:
    rank: int
    size: int = REPLICAS


class Saves:
    """first: whether there is no checkpoint before. keep: as in a recipe.

    beside: the run folder refuses the second replica's shard until the last save, so that the others are committed in
    the alternate, which is watched; the first replica's is copied there.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], keep: int, first: bool, beside: bool = False) -> None:
        self._keep, self._first, self._recipe = keep, first, load(RECIPE, [f"recover.keep={keep}"])
        self._beside = beside
        parameters = [nn.Parameter(torch.zeros(p.shape)) for p in named.values()]
        plan = layout([p.numel() for p in parameters], LANES, bucket=2048)
        self._replicas = []
        for rank in range(REPLICAS):
            state = State(parameters, plan, AdamW())
            state.adopt(share(plan, LANES, rank, REPLICAS, 1))
            self._replicas.append(Trained(state, {name: list(p.shape) for name, p in named.items()}))

    def prepare(self, run: Path) -> Path:
        """Make the folder of a run as it is before the save. Returns the folder to watch."""
        run.mkdir()
        if self._beside:
            (run / "alternate").mkdir()
        if not self._first:
            self._save(run, BEFORE)
        return self._places(run)[-1]

    def work(self, run: Path, tell: Tell) -> None:
        self._save(run, SAVED, tell)

    def after(self, run: Path, tell: Tell) -> None:
        """Where the process goes on."""
        whole = [event["step"] for event in journal.read(run / "journal.jsonl") if event["event"] == "checkpoint"]
        for problem in self._examine(run, max(whole, default=0)):
            tell({"event": "problem", "reason": problem})
        self._save(run, NEXT, tell)

    def problems(self, run: Path, point: Point, life: Life, undisturbed: Life) -> list[str]:
        """What is wrong with what the life left, and with the next one."""
        found = [event["reason"] for event in life.of("problem", "raised")]
        if life.code != (0 if point.error or not point.number else -9):
            found.append(f"the process ended with {life.code}")
        if life.code == 0:
            found += _untold(run, life)
        found += self._examine(run, self._promised(point, life, undisturbed))
        for place in self._places(run):
            checkpoint.clean(Disk(), place)
        self._save(run, LAST)
        return found + self._examine(run, LAST) + self._left(run)

    def _promised(self, point: Point, life: Life, undisturbed: Life) -> int:
        """The step of the last checkpoint that was acknowledged, or is durable as it is about to be."""
        told = [event["step"] for event in life.of("checkpoint")]
        calls = undisturbed.calls
        renamed = calls.index(f"rename /step-{SAVED}.partial") + 2  # with the sync after it
        done = SAVED if not point.error and point.number > renamed else 0
        return max([0 if self._first else BEFORE, done, *told])

    def _save(self, run: Path, step: int, tell: Tell = lambda event: None) -> None:
        machines = self._recipe.run.model_copy(update={"alternate": str(run / "alternate") if self._beside else None})
        recipe = self._recipe.model_copy(update={"run": machines})
        job = Job("train", recipe, run, [], run, steps=LAST, stop=LAST)
        if self._beside and step < LAST:
            _refuse_second(job.places[0], step)
        with Journal(run / "journal.jsonl") as written:
            logbook = Logbook(job, written, [tell], {})
            for rank, trained in enumerate(self._replicas):
                self._fill(trained, step)
                line = Line(rank)
                saving: Any = Checkpoints(job, trained, Watched(trained), line, Disk())
                saving.enter(Wire(rank), 1)
                saving.save(_digest(step))
                saving.wait()
                for event in line.events:
                    logbook.hear(event)
            logbook.close()

    def _examine(self, run: Path, promised: int) -> list[str]:
        """Whether each checkpoint is whole and of one step, and the newest one not older than `promised`."""
        saved = checkpoint.saved(*self._places(run))
        newest, _ = checkpoint.newest(*self._places(run))
        found = list(_damaged(saved))
        if (newest.step if newest else 0) < promised:
            found.append(f"the newest is of step {newest and newest.step}, but {promised} was acknowledged")
        for step, folder in saved:
            with contextlib.suppress(DataError):  # then it is damaged, which has been said
                found += [f"step {step}: {what}" for what in self._mixed(folder, step)]
        return found

    def _places(self, run: Path) -> tuple[Path, ...]:
        return checkpoint.places(run, run / "alternate" if self._beside else None)

    def _mixed(self, folder: Path, step: int) -> list[str]:
        """What is not that of `step`, once the checkpoint has been restored."""
        manifest = checkpoint.verify(folder)
        found = [] if (manifest.step, manifest.digest) == (step, _digest(step)) else ["another step's manifest"]
        found += [] if manifest.state == {"watch": {"step": step}} else ["another step's watch"]
        for rank, trained in enumerate(self._replicas):
            self._fill(trained, step)
            wanted = trained.state.snapshot(list(trained.shapes))
            self._fill(trained, 0)
            trained.state.restore(list(manifest.shapes), checkpoint.parts(folder, manifest), manifest.updates)
            there = trained.state.snapshot(list(trained.shapes))
            found += [f"{part} of replica {rank}" for part in wanted if not torch.equal(wanted[part], there[part])]
            found += [] if trained.state.updates == [step] * len(trained.shapes) else ["the counts of updates"]
        return found

    def _left(self, run: Path) -> list[str]:
        """What is there beside the checkpoints that the recipe keeps."""
        places = self._places(run)
        kept = checkpoint.saved(*places)
        found = sorted({path.name for place in places for path in place.iterdir()} - {one.folder.name for one in kept})
        for _, folder in kept:
            if not (folder / checkpoint.MANIFEST).exists():
                continue
            wanted = set(checkpoint.read(folder).shards) | {checkpoint.MANIFEST}
            found += sorted({path.name for path in folder.iterdir()} ^ wanted)
        found += [f"{len(kept)} checkpoints"] if len(kept) > self._keep else []
        return [f"left over: {name}" for name in found]

    def _fill(self, trained: Trained, step: int) -> None:
        """Numbers that tell their step, and for moments which."""
        trained.number = step
        state = trained.state
        state.weights.copy_(torch.arange(len(state.weights)) + 1e5 * step)
        state.updates = [step] * len(trained.shapes)
        for region, moments in state.moments.items():
            for number, moment in enumerate(moments):
                moment.copy_(torch.arange(region.start, region.stop) * (2.0 + number) - 1e5 * step)


def _digest(step: int) -> str:
    return f"sha256:{step:064}"


def _refuse_second(place: Path, step: int) -> None:
    """The names of the second replica's shard are taken, for each of its attempts."""
    folder = checkpoint.partial_of(place, step)
    folder.mkdir(parents=True)
    for attempt in range(1, TRIES + 1):
        (folder / f"shard-1-1-{attempt}.safetensors").touch()


def _damaged(saved: Sequence[Saved]) -> Iterator[str]:
    for _, folder in saved:
        try:
            checkpoint.verify(folder)
        except DataError as error:
            yield f"damaged: {error}"


def _untold(run: Path, life: Life) -> list[str]:
    """Failures that no event tells of, or no line of the journal."""
    told, written = life.of("checkpoint", *UNSAVED), journal.read(run / "journal.jsonl")
    found = [f"not journalled: {event}" for event in told if event not in written]
    steps = {event["step"] for event in life.of("checkpoint", "checkpoint_failed")}
    return found + [f"nothing was told of the end of step {step}" for step in (SAVED, NEXT) if step not in steps]
