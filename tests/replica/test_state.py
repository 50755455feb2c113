"""What some replicas saved, any number of others take over."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.recover.shards import Part
from samestep.replica.state import State
from samestep.sync.slices import Layout, layout
from tests.replica.counting import counting


def states(sizes: list[int], replicas: int, plan: Layout, seed: int, copies: int = 1) -> list[State]:
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    return [counting(parameters, plan, rank, replicas, copies, seed) for rank in range(replicas)]


def as_bytes(parts: dict[Part, Tensor]) -> list[tuple[Part, memoryview]]:
    return [(part, memoryview(bytearray(tensor.numpy().tobytes()))) for part, tensor in parts.items()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))
def test_any_number_of_replicas_takes_over_what_any_other_saved(
    sizes: list[int], before: int, after: int, copies: int
) -> None:
    plan, names = layout(sizes, 8, bucket=2048), [f"p{i}" for i in range(len(sizes))]
    old, new, wanted = (states(sizes, n, plan, seed, copies) for n, seed in ((before, 7), (after, 0), (after, 7)))
    parts = [pair for state in old for pair in as_bytes(state.snapshot(names))]
    for one, like in zip(new, wanted, strict=True):
        one.restore(names, parts, range(len(sizes)))
        assert one.updates == list(range(len(sizes)))
        for region in plan.regions:  # the padding between parameters is nobody's
            assert torch.equal(one.weights[region.start : region.stop], like.weights[region.start : region.stop])
        for mine, theirs in zip(as_bytes(one.snapshot(names)), as_bytes(like.snapshot(names)), strict=True):
            assert mine == theirs


def test_each_element_of_each_kind_is_saved_once() -> None:
    sizes = [5000, 17, 3000]
    plan = layout(sizes, 8, bucket=2048)
    counts = {
        (kind, number): torch.zeros(size)
        for kind in ("weights", "moment0", "moment1")
        for number, size in enumerate(sizes)
    }
    for state in states(sizes, 3, plan, 0, copies=2):
        for part in state.snapshot(["0", "1", "2"]):
            counts[part.kind, int(part.parameter)][part.start : part.stop] += 1
    assert all(bool((count == 1).all()) for count in counts.values())


def test_a_snapshot_does_not_follow_the_training() -> None:
    (state,) = states([100], 1, layout([100], 1), 0)
    taken = state.snapshot(["p"])
    state.weights.zero_()
    assert taken[Part("weights", "p", 0, 100)].sum() > 0
