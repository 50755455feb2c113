"""A bit flips in one replica of a real run: it is named and replaced, and the model is that of the undisturbed run."""

import sys
from pathlib import Path

import pytest

from samestep.sync.again import again
from samestep.sync.tree import spans
from samestep.verbs import program
from tests.same.test_survivors_go_on import lived, same


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return lived(tmp_path_factory.mktemp("whole") / "run", {}, replicas=1)


@pytest.fixture
def flipped(tmp_path, monkeypatch):
    def run(replica, step, kind, killed=None, **settings):
        monkeypatch.setenv("FLIP", f"{replica} {step} {kind}")
        monkeypatch.setattr(program, "REPLICA", (sys.executable, str(Path(__file__).with_name("flipping.py"))))
        return lived(tmp_path / "run", killed or {}, **settings)

    return run


def left(events):
    return [(event["replica"], event["reason"]) for event in events if event["event"] == "left"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moment0", "weights"])
def test_the_replica_is_named_and_the_others_go_on_from_memory(flipped, undisturbed, kind):
    found = flipped(1, 5, kind, replicas=2)
    same(found, undisturbed)
    ((replica, reason),) = left(found[1])
    assert replica == 1 and f"{kind} of " in reason and "changed while it rested after step 5" in reason
    assert not any(event["restored"] for event in found[1] if event["event"] == "formed" and event["generation"] > 1)


@pytest.mark.slow
def test_alone_it_goes_back_to_the_checkpoint(flipped, undisturbed):
    found = flipped(0, 6, "moment0", replicas=1)
    same(found, undisturbed)
    assert len(left(found[1])) == 1
    assert [event["step"] for event in found[1] if event["event"] == "resumed"] == [4]


@pytest.mark.slow
def test_of_three_copies_the_odd_one_is_outvoted(flipped, undisturbed):
    found = flipped(2, 6, "sealed", replicas=3, **{"sync.state": "replicated"})
    same(found, undisturbed)
    ((replica, reason),) = left(found[1])
    assert replica == 2 and "is not that of most others" in reason
    assert not any(event["restored"] for event in found[1] if event["event"] == "formed" and event["generation"] > 1)


@pytest.mark.slow
def test_of_two_copies_that_differ_a_replay_from_the_checkpoint_decides(flipped, undisturbed):
    found = flipped(1, 6, "sealed", replicas=2)
    same(found, undisturbed)
    assert sorted(replica for replica, _ in left(found[1])) == [0, 1]
    assert [event["step"] for event in found[1] if event["event"] == "resumed"] == [4]


@pytest.mark.slow
def test_a_bit_that_flips_before_the_state_is_handed_on_goes_nowhere(flipped, undisturbed):
    found = flipped(1, 5, "handed", killed={5: [0]}, replicas=2)
    same(found, undisturbed)
    assert [replica for replica, _ in left(found[1])] == [0, 1] and "moment0 of " in left(found[1])[1][1]


@pytest.mark.slow
def test_of_a_gradient_computed_wrongly_nothing_is_applied(flipped, undisturbed):
    due = again(6, 3, spans(8, 4))
    found = flipped(due.witness, 6, "computed", replicas=4, **{"recover.recompute_every": 3})
    same(found, undisturbed)
    assert {replica for replica, _ in left(found[1])} == {due.carrier, due.witness}
    assert all(f"the gradient of lane {due.lane} after step 6" in reason for _, reason in left(found[1]))
    assert not any(event["restored"] for event in found[1] if event["event"] == "formed" and event["generation"] > 1)
