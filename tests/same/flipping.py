"""A replica in which a bit flips: what `python -m samestep.replica` runs, but for FLIP="replica step kind".

kind: moment0, weights: of what it holds. sealed: of its moments, as if its arithmetic had been wrong.
"""

import os

import torch

from samestep.replica.__main__ import main
from samestep.replica.run import Run
from samestep.replica.step import Step

REPLICA, STEP, KIND = os.environ["FLIP"].split()
number: list[int] = []
enter, reduce, commit = Run.enter, Step.reduce, Step.commit


def flip(step: Step) -> None:
    region = min(step.state.moments)
    values = step.state.weights[region.start : region.stop] if KIND == "weights" else step.state.moments[region][0]
    values.view(torch.int32)[3] ^= 1 << 20


def entering(run: Run, *given: object) -> None:
    number[:] = [run.control.place.replica]
    enter(run, *given)


def reducing(step: Step, *given: object) -> object:
    if number == [int(REPLICA)] and step.number == int(STEP) and KIND != "sealed":
        flip(step)
    return reduce(step, *given)


def committing(step: Step) -> None:
    commit(step)
    if number == [int(REPLICA)] and step.number == int(STEP) and KIND == "sealed":
        flip(step)
        step.seal()


Run.enter, Step.reduce, Step.commit = entering, reducing, committing
raise SystemExit(main())
