"""A bit that flips in what rests is found before the next commit, and the replica where it did is the one that ends."""

import copy
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samestep.errors import Corrupted, NotFinite, PeerLost
from samestep.model.optim import AdamW
from samestep.replica.seal import Frozen, Rest, Seal
from samestep.replica.step import Step
from samestep.wire import loopback

COPIES = {"sharded": 1, "mirrored": 2, "replicated": 4}
STEPS = 4
TRIALS = [30, pytest.param(300, marks=pytest.mark.long)]


def flip(tensor, bit):
    """One bit of the tensor's memory, counted over all of it."""
    data = tensor.detach().view(-1).view(torch.uint8)
    data[bit // 8] ^= 1 << bit % 8


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 60), nn.Tanh(), nn.Linear(60, 200))


def lived(replicas, copies, disturb, scrub=1, steps=STEPS):
    """What each replica came to: the error, or None. disturb(rank, number, step): once the gradients of step `number`
    are there, so before the check, and anything that rested has been used.
    """
    inputs, model = torch.randn(steps, 4, 5, 6, generator=torch.Generator().manual_seed(3)), network()

    def replica(wire):
        mine = copy.deepcopy(model)
        step = Step(mine, wire, AdamW(), lanes=4, copies=copies, scrub=scrub, bucket=4096)
        step.seal()
        try:
            for n in range(steps):
                for lane in step.lanes:
                    step.backward(mine(inputs[n, lane]).square().sum() / 200)
                disturb(wire.rank, n, step)
                step.update(1e-2)
        except (Corrupted, PeerLost, NotFinite) as error:
            wire.cancel(str(error))
            return error
        return None

    return loopback.run(replicas, replica)


class Flips:
    """Flips one bit in what a replica keeps, and remembers where."""

    def __init__(self, draw, replicas, kinds):
        self.rank, self.number = draw.randrange(replicas), draw.randrange(1, STEPS)
        self.kind, self._draw, self.region = draw.choice(kinds), draw, None

    def __call__(self, rank, number, step):
        if (rank, number) == (self.rank, self.number):
            held = sorted(step.state.moments)
            self.region = self._draw.choice(held)
            if self.kind == "weights":
                values = step.state.weights[self.region.start : self.region.stop]
            elif self.kind == "other weights":
                values = self._other(step, held)
            else:
                values = step.state.moments[self.region][int(self.kind[-1])]
            flip(values, self._draw.randrange(32 * values.numel()))

    def _other(self, step, held):
        at = self._draw.randrange(step.layout.total)
        while any(region.start <= at < region.stop for region in held):
            at = self._draw.randrange(step.layout.total)
        return step.state.weights[at : at + 1]


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("state", COPIES)
@pytest.mark.parametrize("scrub", [1, 4])
def test_every_bit_that_flips_in_what_a_replica_holds_is_found_in_its_step(state, scrub, trials):
    draw = random.Random(state)
    for _ in range(trials):
        replicas = draw.randint(1, 4)
        flips = Flips(draw, replicas, ["weights", "moment0", "moment1"])
        found = lived(replicas, COPIES[state], flips, scrub)
        assert isinstance(found[flips.rank], Corrupted)
        assert str(found[flips.rank]).startswith(f"{flips.kind} of ")
        assert f"after step {flips.number}: a bit has flipped" in str(found[flips.rank])
        assert all(isinstance(error, PeerLost) for rank, error in enumerate(found) if rank != flips.rank)


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("scrub", [1, 4])
def test_weights_that_others_hold_are_found_with_the_odds_of_the_setting(scrub, trials):
    draw, caught = random.Random(5), 0
    for _ in range(trials):
        flips = Flips(draw, 4, ["other weights"])
        found = lived(4, 1, flips, scrub, steps=flips.number + 1)
        caught += isinstance(found[flips.rank], Corrupted)
        assert not any(isinstance(error, Corrupted) for rank, error in enumerate(found) if rank != flips.rank)
    print(f"{caught} of {trials} at scrub {scrub}")
    odds = 1 / scrub
    assert abs(caught - odds * trials) <= 3 * (trials * odds * (1 - odds)) ** 0.5


@pytest.mark.parametrize("scrub", [1, 3, 4])
def test_all_weights_are_looked_at_within_as_many_steps_as_are_set(scrub):
    looked_at = []

    def change_all_for_a_moment(rank, number, step):
        if rank == 1:
            kept = step.state.weights.clone()
            step.state.weights.add_(1)
            looked_at.append(torch.zeros(step.layout.total))
            for rest in step.state.seal.broken():
                looked_at[-1][slice(*rest.region)] = 1
            step.state.weights.copy_(kept)

    assert lived(3, 1, change_all_for_a_moment, scrub, steps=2 * scrub) == [None] * 3
    for first in range(scrub + 1):
        assert torch.stack(looked_at[first : first + scrub]).sum(0).all()


@pytest.mark.parametrize("state", COPIES)
def test_nothing_is_found_where_nothing_has_changed(state):
    assert lived(4, COPIES[state], lambda *_: None, scrub=3, steps=40) == [None] * 4


@pytest.mark.long
def test_ten_thousand_clean_checks_raise_no_alarm():
    assert lived(4, 2, lambda *_: None, scrub=2, steps=2500) == [None] * 4


def test_a_bit_that_makes_the_loss_infinite_is_no_fault_of_the_samples():
    def disturb(rank, number, step):
        if (rank, number) == (1, 2):
            step.state.weights[0] = step._losses[-1] = torch.tensor(float("inf"))

    found = lived(3, 2, disturb)
    assert isinstance(found[1], Corrupted) and all(isinstance(found[rank], PeerLost) for rank in (0, 2))


def wrong_arithmetic(victim):
    """What the victim computes at the end of step 2 is wrong, and sealed as it is."""

    def disturb(rank, number, step):
        if (rank, number) == (victim, 3):
            region = min(step.state.moments)
            step.state.moments[region][0][0] += 1
            step.seal()

    return disturb


def test_of_three_copies_the_one_that_differs_ends():
    found = lived(4, 4, wrong_arithmetic(2))
    assert isinstance(found[2], Corrupted) and "is not that of most others" in str(found[2])
    assert all(isinstance(found[rank], PeerLost) for rank in (0, 1, 3))


def test_of_two_copies_that_differ_both_end():
    found = lived(4, 2, wrong_arithmetic(2))
    assert [type(error) for error in found].count(Corrupted) == 2 and isinstance(found[2], Corrupted)
    assert "nobody can tell which is right" in str(found[2])


@given(st.integers(1, 40), st.sampled_from([torch.bfloat16, torch.float32, torch.int64, torch.bool]), st.data())
def test_any_flipped_bit_of_any_tensor_changes_its_sum(size, dtype, data):
    tensor = torch.zeros(size, dtype=dtype)
    seal = Seal([Rest("it", tensor)])
    assert seal.broken() == []
    flip(tensor, data.draw(st.integers(0, 8 * tensor.numel() * tensor.element_size() - 1)))
    assert [rest.kind for rest in seal.broken()] == ["it"]


@pytest.mark.parametrize("every", [1, 2, 5])
def test_what_is_not_trained_is_looked_at_in_turn(every):
    module = network().requires_grad_(False)
    module.register_buffer("table", torch.arange(5))
    frozen, names = Frozen(module, every), ["0.weight", "0.bias", "2.weight", "2.bias", "table"]
    assert [frozen.broken(number) for number in range(10)] == [[]] * 10
    for tensor in [*module.parameters(), module.table]:
        flip(tensor, 11)
    found = [[rest.kind for rest in frozen.broken(number)] for number in range(every)]
    assert found == [names[turn::every] for turn in range(every)]
