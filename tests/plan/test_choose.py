"""The fastest strategy on a network that was measured, or the one whose loss pays less where it is nearly as fast."""

import pytest

from samestep.plan.choose import CANDIDATES, Shape, chosen, predictions
from samestep.plan.timing import Measured
from samestep.sync.slices import layout

LAYOUT = layout([500_000] * 28, 4)
SHAPE = Shape(lanes=4, micro_batches=1, islands=4, every=20, overlap=0)
CODING = {"bfloat16": 2e-9, "int8": 8e-9, "int4": 8e-9}


def on(bandwidth, replicas=4, latency=1e-4):
    """bytes a second between each two."""
    table = [(size, latency + size / bandwidth) for size in (1 << 10, 1 << 17, 1 << 21, 1 << 25)]
    return Measured(replicas, 0.5, 1.0, 1e-9, 2e-10, CODING, table)


def taken(bandwidth, shape=SHAPE, **more):
    choice, reason = chosen(predictions(on(bandwidth, **more), LAYOUT, shape))
    return (choice.candidate.strategy, choice.candidate.wire), reason


def test_a_fast_network_pays_nothing():
    choice, reason = taken(1e10)
    assert choice == ("exact", "float32") and reason.endswith("no other format or strategy is 5% faster")


def test_the_slower_the_network_the_fewer_bits_and_meetings():
    alone = Shape(lanes=4, micro_batches=1, islands=0, every=20, overlap=0)
    assert taken(4e7, alone)[0] == ("exact", "bfloat16") and taken(8e5, alone)[0] == ("exact", "int4")
    choice, reason = taken(8e5)
    assert choice[0] == "diloco"
    assert "a step takes 1." in reason and "; the loss may pay: " in reason and "arXiv" in reason


def test_one_replica_has_no_reason_to_round():
    assert taken(1.0, replicas=1)[0] == ("exact", "float32")


def test_islands_that_are_fewer_than_replicas_are_out_of_question():
    few = Shape(lanes=4, micro_batches=1, islands=2, every=20, overlap=0)
    found = predictions(on(8e5), LAYOUT, few)
    assert {each.candidate.strategy for each in found} == {"exact"}
    assert len(predictions(on(8e5), LAYOUT, SHAPE)) == len(CANDIDATES)


@pytest.mark.parametrize("bandwidth", [1e10, 1e8, 1e6])
def test_a_step_is_the_sum_of_its_parts_and_bytes_fall_with_the_bits(bandwidth):
    found = predictions(on(bandwidth), LAYOUT, SHAPE)
    for each in found:
        assert each.seconds == pytest.approx(sum(each.parts.values())) and each.seconds >= 1.5
    sent = [each.bytes_sent for each in found if each.candidate.strategy == "exact"]
    assert sent == sorted(sent, reverse=True)


def test_every_candidate_says_what_the_loss_may_pay():
    assert all(each.loss for each in CANDIDATES) and len(set(CANDIDATES)) == len(CANDIDATES)
