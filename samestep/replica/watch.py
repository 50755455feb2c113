"""The run watched by its held-out loss: evaluations, answers to fixed prompts, the best model, an early end."""

import math
from collections.abc import Mapping
from typing import Any

from samestep.data.feed import Fixed
from samestep.errors import ClusterError
from samestep.evaluate.heldout import HeldOut, evaluate
from samestep.events import Event
from samestep.model.task import Task
from samestep.replica.board import Phase
from samestep.replica.job import Job
from samestep.replica.place import Control
from samestep.replica.saving import save
from samestep.replica.setup import corpora_of
from samestep.replica.speak import answer
from samestep.replica.split import WHOLE, Split
from samestep.sync.legs import passed
from samestep.wire.collective import Collective


class Watch:
    """All replicas take part and come to the same decisions; replica 0 writes."""

    def __init__(self, job: Job, task: Task, rows: Fixed, control: Control, split: Split = WHOLE) -> None:
        self._job, self._task, self._rows, self._control, self._split = job, task, rows, control, split
        self._last = -1  # step of the last evaluation
        self._best: float | None = None
        self._waited = 0  # evaluations since the best
        self._before = self.state()  # the last evaluation

    def enter(self, wire: Collective) -> None:
        """Take part in a generation."""
        self._wire = wire

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, in JSON."""
        return {"last": self._last, "best": self._best, "waited": self._waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._last, self._best, self._waited = state["last"], state["best"], state["waited"]

    def rewind(self, step: int) -> None:
        """Forget an evaluation of `step`: it is made again, since some may not have come to its end."""
        if self._last == step:
            self.restore(self._before)

    @property
    def enough(self) -> bool:
        """Whether the run should end: its held-out loss has not got lower for as long as the recipe waits."""
        patience = self._job.recipe.evaluate.patience
        return patience is not None and self._waited >= patience

    def after(self, since: int, step: int) -> None:
        """To be called after each commit, of the steps after `since`: evaluates where it is due and has not been done.
        Step 0 is the model before the first one, for comparison: it is never the best.
        """
        if not passed(self._job.recipe.evaluate.every, since, step) or not len(self._rows) or step == self._last:
            return
        self._look(step)
        if self.enough and self._wire.rank == 0:
            self._control.send({"event": "stopped_early", "step": step, "waited": self._waited, "best": self._best})

    def end(self, step: int) -> None:
        """The last evaluation, where the last step had none."""
        if self._last != step and len(self._rows):
            self._look(step)

    def _look(self, step: int) -> None:
        found, self._before, self._last = self._evaluated(step), self.state(), step
        better = step > 0 and found.loss < (math.inf if self._best is None else self._best)  # no NaN
        if step:
            self._best, self._waited = (found.loss, 0) if better else (self._best, self._waited + 1)
        self._tell(step, found, better)
        if better and self._job.recipe.evaluate.best and self._wire.rank == 0:
            self._keep(step, found)

    def _evaluated(self, step: int) -> HeldOut:
        self._control.phase(step, Phase.EVALUATE)
        return evaluate(self._task, self._rows, self._wire, step)

    def _tell(self, step: int, found: HeldOut, better: bool) -> None:
        if self._wire.rank == 0:
            self._control.send(self._event(step, found, better))
            self._answer(step)

    def _event(self, step: int, found: HeldOut, better: bool) -> Event:
        corpora = corpora_of(self._job)
        event: Event = {"event": "evaluated", "step": step, "loss": found.loss, "tokens": found.targets, "best": better}
        if found.accuracy is not None:
            return event | {"accuracy": found.accuracy, "pairs": found.terms}
        text = sum(corpus.held_out_bytes for corpus in corpora)
        if self._job.recipe.objective.kind != "causal" or not text:
            return event
        tokens = sum(len(corpus.held_out.ids) for corpus in corpora)
        zipped = sum(corpus.held_out_zlib for corpus in corpora)
        bits = found.bits_per_byte(tokens, text, corpora[0].vocabulary)
        return event | {"bits_per_byte": bits, "zlib_bits_per_byte": 8 * zipped / text}

    def _answer(self, step: int) -> None:
        prompts = self._job.recipe.evaluate.prompts
        whole = self._split.gathered(self._task) if prompts else None
        if whole is None:
            return
        for prompt in prompts:
            self._control.send(answer(self._job, whole, prompt) | {"step": step})

    def _keep(self, step: int, found: HeldOut) -> None:
        self._control.phase(step, Phase.SAVE)
        whole = self._split.gathered(self._task)
        if whole is None:
            return
        try:
            digest = save(whole, self._job.run / "best")
        except ClusterError as error:
            self._control.send({"event": "best_failed", "step": step, "reason": str(error)})
        else:
            self._control.send({"event": "best", "step": step, "loss": found.loss, "digest": digest})
