"""What units have is saved with their parameters' names, and goes where its unit is."""

import torch

from samestep.recover.shards import Part
from samestep.replica.carried import Carried
from samestep.sync.slices import layout

PLAN = layout([40, 7], 4)
CARRIED = Carried(PLAN, "island", ["weights", "moment0"], 4)
NAMES = ["a", "b"]


def numbered(span):
    values = CARRIED.blank(span, torch.zeros(0))
    for unit, tensors in values.items():
        for at, tensor in enumerate(tensors):
            tensor.copy_(torch.arange(PLAN.total) + 1000 * unit + 100 * at)
    return values


def test_each_value_of_each_unit_has_a_name():
    assert CARRIED.names() == [f"island{unit}_{kind}" for unit in range(4) for kind in ("weights", "moment0")]


def test_what_one_span_has_saved_another_takes_up():
    saved = CARRIED.snapshot(numbered(range(1, 3)), NAMES) | CARRIED.snapshot(numbered(range(3, 4)), NAMES)
    assert {part.kind for part in saved} == {name for name in CARRIED.names() if not name.startswith("island0")}
    taken = CARRIED.blank(range(2, 4), torch.zeros(0))
    for part, data in saved.items():
        assert CARRIED.take(taken, part, NAMES.index(part.parameter), data)
    want = numbered(range(2, 4))
    for unit, tensors in taken.items():
        for tensor, wanted in zip(tensors, want[unit], strict=True):
            for region in PLAN.regions:
                assert torch.equal(tensor[slice(*region)], wanted[slice(*region)])


def test_what_all_have_is_left_to_others():
    assert not CARRIED.take(numbered(range(1)), Part("weights", "a", 0, 40), 0, torch.zeros(40))
