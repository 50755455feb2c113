"""A replica in which a bit flips: what `python -m samestep.replica` runs, but for FLIP="replica step kind".

kind: moment0, weights: of what it holds. sealed: of its moments, as if its arithmetic had been wrong.
computed: no bit rests otherwise, but the gradients that it computes in that step are a little wrong.
handed: of its moments, where another replica has been lost in that step.
"""

import os

import torch

from samestep.replica.__main__ import main
from samestep.replica.crew import Crew
from samestep.replica.run import Run
from samestep.replica.step import Step

REPLICA, STEP, KIND = os.environ["FLIP"].split()
WHEN_REDUCED = ("moment0", "weights")
number: list[int] = []
enter, backward, reduce, commit, settle = Run.enter, Step.backward, Step.reduce, Step.commit, Crew._settle


def flip(step: Step) -> None:
    region = min(step.state.moments)
    values = step.state.weights[region.start : region.stop] if KIND == "weights" else step.state.moments[region][0]
    values.view(torch.int32)[3] ^= 1 << 20


def entering(run: Run, *given: object) -> None:
    number[:] = [run.control.place.replica]
    enter(run, *given)


def computing(step: Step, loss: torch.Tensor) -> None:
    if number == [int(REPLICA)] and step.number == int(STEP) and KIND == "computed":
        loss.register_hook(lambda gradient: gradient * 1.000001)
    backward(step, loss)


def reducing(step: Step, *given: object) -> object:
    if number == [int(REPLICA)] and step.number == int(STEP) and KIND in WHEN_REDUCED:
        flip(step)
    return reduce(step, *given)


def committing(step: Step) -> None:
    commit(step)
    if number == [int(REPLICA)] and step.number == int(STEP) and KIND == "sealed":
        flip(step)
        step.seal()


def settling(crew: Crew, formation: object) -> None:
    settle(crew, formation)
    if number == [int(REPLICA)] and crew._run.step.number == int(STEP) and KIND == "handed":
        flip(crew._run.step)


Run.enter, Step.backward, Step.reduce, Step.commit, Crew._settle = entering, computing, reducing, committing, settling
raise SystemExit(main())
