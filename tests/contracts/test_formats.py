"""The laws of every wire format: one set of bits at any number of replicas, near float32, nothing before a commit."""

import copy

import pytest
import torch
from torch import nn

from samestep.errors import NotFinite, RecipeError
from samestep.model.optim import SGD, AdamW
from samestep.recipe.schema import Diloco
from samestep.replica.islands import Islands
from samestep.replica.step import Step
from samestep.sync.rounded import SUMS
from samestep.wire import loopback
from samestep.wire.codec import FORMATS
from samestep.wire.formats import EXACT, Formats

LANES, STEPS = 8, 4
SAME = [Formats(name, name) for name in SUMS if name != "float32"]
MIXED = [Formats("float32", "bfloat16"), Formats("float32", "int8"), Formats("float32", "int4")]
MIXED += [Formats("int4", "float32"), Formats("int8", "bfloat16")]
LOSES = {"float32": 0.0, "bfloat16": 0.01, "int8": 0.02, "int4": 0.1}  # of the weights' norm, after STEPS steps of Adam
INPUTS = torch.randn(40, LANES, 2, 5, 6, generator=torch.Generator().manual_seed(3))
torch.manual_seed(0)
MODULE = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 40))  # made before the replicas' threads are
STREAMING = Diloco(islands=8, every=2, fragments=2, mix=0.25)


@pytest.fixture(params=[*SAME, *MIXED], ids="-".join)
def formats(request):
    return request.param


def lane_loss(module, n, lane, micro):
    return module(INPUTS[n, lane, micro]).square().sum() / 400


def compute(step, module, accumulate=1, n=None):
    for lane in step.lanes:
        for micro in range(accumulate):
            step.backward(lane_loss(module, step.number if n is None else n, lane, micro))


def lived(replicas, formats, steps=STEPS, rule=None, accumulate=1, disturb=None, **settings):
    """By rank: the sums, the weights and the kept state after the last step."""

    def replica(wire):
        mine, given = copy.deepcopy(MODULE), {"scrub": 1, "bucket": 2048, **settings}
        step = Step(mine, wire, rule or AdamW(), lanes=LANES, accumulate=accumulate, formats=formats, **given)
        step.seal()
        sums = []
        for n in range(steps):
            if disturb:
                disturb(step, mine, n)
            compute(step, mine, accumulate)
            sums.append(step.update(1e-2))
        return sums, step.state.weights.clone(), step

    return loopback.run(replicas, replica)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("rule", "clip"), [(AdamW(), 0.02), (SGD(), 0.02), (AdamW(), None)], ids=str)
def test_any_number_of_replicas_has_the_bits_of_one(formats, rule, clip, accumulate):
    ((sums, weights, _),) = lived(1, formats, rule=rule, accumulate=accumulate, clip=clip)
    assert clip is None or sums[0].gradient_norm > clip
    for replicas in (2, 3, 4, 8):
        for found, there, _ in lived(replicas, formats, rule=rule, accumulate=accumulate, clip=clip):
            assert found == sums and torch.equal(there, weights)


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_copies_of_moments_and_masters_change_no_bit(weights):
    alone = lived(1, Formats("float32", weights))[0]
    for sums, found, _ in lived(4, Formats("float32", weights), copies=3):
        assert sums == alone[0] and torch.equal(found, alone[1])


def test_what_is_rounded_is_near_float32(formats):
    (_, exact, _), (_, found, _) = lived(1, EXACT)[0], lived(1, formats)[0]
    assert 0 < (found - exact).norm() <= (LOSES[formats.sums] + LOSES[formats.weights]) * exact.norm()


def test_the_loss_falls(formats):
    sums, _, _ = lived(2, formats, steps=20)[0]
    assert sums[-1].loss < 0.9 * sums[0].loss


def resting(step):
    state = step.state
    kept = [value for values in (*state.moments.values(), *state.kept.units.values()) for value in values]
    return [value.clone() for value in (state.weights, *kept)]


def test_nothing_changes_before_the_commit(formats):
    def replica(wire):
        mine = copy.deepcopy(MODULE)
        step = Step(mine, wire, AdamW(), lanes=LANES, clip=0.02, formats=formats, bucket=2048)
        for _ in range(2):
            before = resting(step)
            compute(step, mine)
            step.reduce()
            step.propose(1e-2)
            assert all(map(torch.equal, before, resting(step)))
            step.commit()
            assert not any(map(torch.equal, before, resting(step)))

    loopback.run(2, replica)


def test_a_step_that_was_abandoned_leaves_no_trace(formats):
    def disturb(step, module, n):
        if n == 2:
            compute(step, module, n=30)
            step.reduce()
            step.propose(1e-2)
            step._gradients.begin()
            step._losses.clear()

    for (sums, weights, _), (wanted, want, _) in zip(
        lived(3, formats, disturb=disturb), lived(3, formats), strict=True
    ):
        assert sums == wanted and torch.equal(weights, want)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("replicas", [1, 3])
def test_a_gradient_of_one_lane_that_is_not_finite_ends_the_step(formats, value, replicas):
    def replica(wire):
        mine = copy.deepcopy(MODULE)
        step = Step(mine, wire, AdamW(), lanes=LANES, formats=formats)
        before = resting(step)
        mine[0].weight.register_hook(lambda g: g.index_fill(0, torch.tensor(7), value) if step.ill else g)
        for lane in step.lanes:
            step.ill = lane == 5
            step.backward(lane_loss(mine, 0, lane, 0))
        with pytest.raises(NotFinite, match=r"step 1: the gradient norm is (nan|inf); nothing was applied"):
            step.reduce()
        return all(map(torch.equal, before, resting(step)))

    assert all(loopback.run(replicas, replica))


@pytest.mark.parametrize("formats", SAME, ids="-".join)
def test_what_was_rounded_off_comes_with_the_next_step(formats):
    """A step of no gradient moves the weights by what the step before has left."""

    def replica(wire):
        mine = copy.deepcopy(MODULE)
        step = Step(mine, wire, SGD(), lanes=LANES, formats=formats)
        for n, factor in enumerate((1.0, 0.0)):
            for lane in step.lanes:
                step.backward(lane_loss(mine, n, lane, 0) * factor)
            sums = step.update(0.0)
        return sums.gradient_norm

    assert 0 < loopback.run(2, replica)[0] < 0.5


def test_a_parameter_without_a_gradient_keeps_weights_and_feedback(formats):
    module = nn.ModuleList([nn.Linear(6, 300), nn.Linear(6, 300)])
    torch.nn.init.normal_(module[0].weight)

    def replica(wire):
        mine = copy.deepcopy(module)
        step = Step(mine, wire, AdamW(), lanes=LANES, formats=formats)
        for n, used in enumerate((0, 1, 1)):
            kept = feedback(step, step.layout.regions[0])
            for lane in step.lanes:
                step.backward(mine[used](INPUTS[n, lane, 0]).square().sum())
            step.update(1e-2)
        now = feedback(step, step.layout.regions[0])
        return all(map(torch.equal, kept, now)), [each.any() for each in now]

    for same, there in loopback.run(2, replica):
        assert same and all(there)


def feedback(step, region):
    units = step.state.kept.units.values()
    return [values[-1][region.start : region.stop].clone() for values in units]


def met(replicas, formats, overlap=0):
    """By rank: the sums of all steps and the common weights."""

    def replica(wire):
        mine = copy.deepcopy(MODULE)
        terms = STREAMING.model_copy(update={"every": 4, "overlap": overlap})
        step = Islands(mine, wire, AdamW(), terms, lanes=LANES, steps=9, clip=0.5, formats=formats, bucket=2048)
        sums = []
        while step.number < 9:
            compute(step, mine)
            step.reduce()
            step.propose(1e-2)
            step.commit()
            sums += [] if step.open else step.told
        return sums, step.state.weights.clone()

    return loopback.run(replicas, replica)


@pytest.mark.parametrize("overlap", [0, 1])
def test_islands_have_the_bits_of_one_replica(formats, overlap):
    ((sums, weights),) = met(1, formats, overlap)
    exact = met(1, EXACT, overlap)[0][1]
    assert 0 < (weights - exact).norm() < 0.1 * exact.norm()
    for replicas in (2, 3, 8):
        for found, there in met(replicas, formats, overlap):
            assert found == sums and torch.equal(there, weights)


def test_fast_is_refused():
    with pytest.raises(RecipeError, match="fast was asked to send int8 and float32, but it adds up float32 only"):
        loopback.run(1, lambda wire: Step(MODULE, wire, AdamW(), lanes=8, strategy="fast", formats=Formats("int8")))


def test_the_menus_have_the_same_formats():
    assert list(SUMS) == list(FORMATS)
