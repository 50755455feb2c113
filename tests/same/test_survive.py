"""scripts/survive leaves out no objective and no shape."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from samestep.recipe.schema import Objective
from samestep.recover.faults import KINDS as FAULTS
from samestep.recover.faults import schedule
from samestep.verbs import chaos
from samestep.verbs.prepare import prepare
from samestep.verbs.train import opening
from tests.same.survive import KINDS, SHAPES, SHORT, SINGLE, TINY, Stage, on, turn


def test_every_objective_of_the_menu_is_tried():
    union, _ = get_args(Objective)
    assert set(KINDS.values()) == {kind.model_fields["kind"].annotation.__args__[0] for kind in get_args(union)}


def test_seventy_two_seeds_in_a_row_have_each_objective_with_each_shape():
    turns = [turn(seed) for seed in range(1000, 1072)]
    assert set(turns) == set(product(KINDS, SHAPES))
    assert sum(shape == SINGLE for _, shape in turns) == len(turns) / 2


def test_every_fault_but_a_hang_which_takes_seconds_is_among_the_shapes():
    assert {kind for kinds, _ in SHAPES.values() for kind in kinds} == FAULTS.keys() - {"hang"}


@pytest.mark.parametrize("state", ["sharded", "mirrored", "replicated"])
def test_the_replicas_hold_their_moments_as_was_drawn(tmp_path, state):
    prepared = on(prepare(TINY, [], lambda line: None), state, {"replicas": 3})
    assert prepared.job("train", tmp_path).recipe.sync.state == opening(prepared, 0.0)["state"] == state


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "dpo-base"])
def test_a_resumed_preference_run_keeps_the_reference_of_its_start(tmp_path, objective):
    stage = Stage(tmp_path)
    prepared, whole, _ = stage._whole(objective, SHORT)
    (halt,) = schedule(1, chaos.scope(prepared), 1, ["halt"])
    outcome = chaos.disturbed(prepared, tmp_path / "run", 1, [replace(halt, step=5)], whole, lambda line: None)
    assert outcome.events["resumed"] == 1 and outcome.problems == []
