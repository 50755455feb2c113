"""A replica among the others, from generation to generation.

    waiting -> formed: settle, then set up or hand over -> all ready -> steps -> a peer is lost -> waiting

Each move, of a step or of a generation, is made once all are ready for it. So those that are left after a death differ
by one move at most, and whoever has not made it has all that it needs.
"""

import time
from functools import partial
from typing import Any

from samestep.replica import kernels, reference
from samestep.replica.board import Phase
from samestep.replica.carrier import carried, shared
from samestep.replica.handover import Handover
from samestep.replica.job import Job, parse
from samestep.replica.place import Control, Formation, open_wire
from samestep.replica.run import Run, prepare
from samestep.replica.state import Kept
from samestep.sync.exact import share
from samestep.sync.share import Share
from samestep.wire.collective import Collective, Operation, Tag, everybody_ready

NOTHING = -1  # held by a replica that has no state yet


class Crew:
    def __init__(self, job: Job, control: Control) -> None:
        self._control = control
        self._run = prepare(job, control)
        self._wire: Collective | None = None
        self._generation = 0  # the one that was left last
        self._held = NOTHING  # the generation whose division of the state is followed
        self._ready = False  # for the generation that is being formed
        self._said = ""  # of how devices are shared
        self._coming: tuple[Share, Kept] | None = None  # until all have theirs
        control.joined()

    def join(self) -> Run:
        """Wait for the next generation and take part in it. PeerLost where it ends before it has begun."""
        formation = self._control.formation()
        self._generation, self._ready = formation.generation, False
        self._settle(formation)
        wire = self._open(formation)
        if self._run.job.recipe.sync.strategy != "fast":
            kernels.agree(wire, kernels.describe(self._run.device))
        kept = self._taken_over(wire, formation) if formation.work is None else self._set_up(wire)
        self._ready = True
        everybody_ready(wire, Tag(self._run.step.number, Operation.BEGIN))
        self._run.enter(wire, formation.generation, kept)
        self._held, self._ready, self._coming = formation.generation, False, None
        return self._run

    def _open(self, formation: Formation) -> Collective:
        """The transport of a generation, for tensors of this replica's device too."""
        run, over = self._run, partial(self._control.is_over, formation.generation)
        self._wire = open_wire(self._control, formation)
        nccl = run.job.recipe.run.transport == "auto"
        self._wire, seats = carried(self._wire, run.device, nccl, self._control.place.address, over)
        reason = shared(seats) if seats and self._wire.rank == 0 else None
        if reason and reason != self._said:
            self._control.send({"event": "devices_shared", "reason": reason})
            self._said = reason
        return self._wire

    def leave(self) -> None:
        """End one's part in the generation, so that nobody waits for this replica there, and wait for the next."""
        self.close()
        self._control.spent.enter(Phase.START, time.monotonic())  # until the next generation has begun
        made, forming = self._run.made, self._held != self._generation
        ready = self._ready if forming else made is not None and made.ready
        if made is not None and made.open:
            self._held = NOTHING  # islands that are on their own way: nobody can say where
        known = made is not None and (ready or self._held != NOTHING)
        said = {"generation": self._generation, "held": self._held, "step": made.commits if made and known else NOTHING}
        self._control.send({"event": "waiting"} | said | {"ready": ready})

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()

    def _settle(self, formation: Formation) -> None:
        """Move on where others have, and forget what is open otherwise."""
        if formation.work is not None:
            self._held = NOTHING
            if self._run.made is not None:
                del self._run  # two models would not fit
                self._run = prepare(parse(formation.work), self._control)
            return
        if self._control.place.replica not in formation.before:
            self._held = NOTHING
        elif formation.held > self._held:
            if self._coming is not None:
                self._run.step.state.adopt(*self._coming)
            self._held = formation.held
        else:
            self._run.step.settle(formation.step)
        self._coming = None

    def _set_up(self, wire: Collective) -> Kept:
        run = self._run
        reference.attach(run.job, run.task, wire, run.readers)  # a checkpoint brings a model that has been trained
        run.begin(wire)
        return run.step.state.kept

    def _taken_over(self, wire: Collective, formation: Formation) -> Kept:
        if self._run.made is None:
            reference.attach_kept(self._run.job, self._run.task, self._run.readers)
            self._run.make(wire)
        step = self._run.step
        step.check()  # before it is handed on
        self._run.watch.rewind(step.number)
        places = {replica: rank for rank, replica in enumerate(formation.members)}
        before = [places.get(replica) for replica in formation.before]
        handover = Handover(wire, step.layout, step.state, before, step.copies, formation.step)
        mine = share(step.layout, step.units, wire.rank, wire.size, step.copies)
        kept = handover.kept(mine)
        self._take(handover.record(self._known()))
        self._coming = mine, kept
        return kept

    def _known(self) -> dict[str, Any]:
        step = self._run.step
        known = {"step": step.number, "updates": step.state.updates, "watch": self._run.watch.state()}
        return known | {"begun": self._run.checkpoints.begun}

    def _take(self, known: dict[str, Any]) -> None:
        step = self._run.step
        step.number, step.state.updates = known["step"], known["updates"]
        self._run.watch.restore(known["watch"])
        self._run.checkpoints.begun = known["begun"]
