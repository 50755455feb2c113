"""Islands: what plain PyTorch makes of DiLoCo, the same bits at any number of replicas, and nothing sent in between."""

import copy
import math

import pytest
import torch
from torch import nn

from samestep.errors import NotFinite
from samestep.model.optim import AdamW
from samestep.recipe.schema import Diloco
from samestep.replica.islands import Islands
from samestep.wire import loopback

LANES, STEPS = 8, 11
INPUTS = torch.randn(STEPS, LANES, 5, 6, generator=torch.Generator().manual_seed(3))
torch.manual_seed(0)
MODULE = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 40))  # made before the replicas' threads are
STREAMING = {"fragments": 2, "overlap": 1, "mix": 0.25}


def loss_of(module, step, lane):
    return module(INPUTS[step, lane]).square().sum() / (40 * LANES)


def lived(replicas, disturb=lambda step: None, steps=STEPS, **terms):
    """By replica: the sums of each step, the weights at each meeting, and the bytes sent after each step."""
    terms = Diloco(**{"islands": 4, "every": 4, **terms})

    def replica(wire):
        mine = copy.deepcopy(MODULE)
        step = Islands(mine, wire, AdamW(), terms, lanes=LANES, steps=steps, clip=0.5, scrub=2, bucket=1024)
        step.seal()
        sums, met, sent = [], [], []
        while step.number < steps:
            for lane in step.lanes:
                step.backward(loss_of(mine, step.number, lane))
            disturb(step)
            step.reduce()
            step.propose(1e-2)
            step.commit()
            sent.append(wire.bytes_sent)
            if not step.open:
                sums += step.told
                met.append(torch.cat([p.detach().flatten() for p in mine.parameters()]))
        return sums, met, sent

    return loopback.run(replicas, replica)


def plain(every, together=0, overlap=0, steps=STEPS, islands=4):
    """Algorithm 1 of arXiv 2311.08105 with torch's own optimizers; before it, steps after each of which the mean is
    taken. What the models learn while the outer gradient is on its way is added to what comes back.
    """
    common = copy.deepcopy(MODULE)
    outer = torch.optim.SGD(common.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    models = [copy.deepcopy(MODULE) for _ in range(islands)]
    inner = [torch.optim.AdamW(groups(model), lr=1e-2, betas=(0.9, 0.95)) for model in models]
    for step in range(steps):
        for island, (model, optimizer) in enumerate(zip(models, inner, strict=True)):
            lanes = range(LANES * island // islands, LANES * (island + 1) // islands)
            learn(model, optimizer, step, lanes, islands)
        meets, last = (step + 1 - together) % every == 0, step + 1 == steps
        if step < together or last or (step + 1 + overlap - together) % every == 0:
            sent = copy.deepcopy(models)
        if step < together or meets or last:
            for parameter, *others in zip(common.parameters(), *(m.parameters() for m in sent), strict=True):
                parameter.grad = torch.stack([parameter.detach() - other.detach() for other in others]).mean(0)
                if step < together:
                    parameter.detach().sub_(parameter.grad)
            if step >= together:
                outer.step()
            go_on(models, common, sent)
    return torch.cat([p.detach().flatten() for p in common.parameters()])


def learn(model, optimizer, step, lanes, islands):
    optimizer.zero_grad()
    (sum(loss_of(model, step, lane) for lane in lanes) * islands).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()


def go_on(models, common, sent):
    """From the common weights, each with what it has learnt since."""
    for model, before in zip(models, sent, strict=True):
        for own, new, left in zip(model.parameters(), common.parameters(), before.parameters(), strict=True):
            own.detach().add_(new.detach() - left.detach())


def groups(model):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


@pytest.mark.parametrize(
    ("every", "together", "overlap"),
    [(1, 0, 0), (4, 0, 0), (20, 0, 0), (4, 3, 0), (4, 20, 0), (2, 0, 1), (4, 0, 2), (4, 3, 1)],
)
def test_the_weights_are_nearly_those_of_plain_torch(every, together, overlap):
    (_, met, _), *_ = lived(2, every=every, together=together, overlap=overlap)
    want = plain(every, together, overlap)
    assert (met[-1] - want).norm() <= 1e-4 * want.norm()


@pytest.mark.parametrize("terms", [{}, STREAMING, {"islands": 8}, {"islands": 1}, STREAMING | {"together": 3}])
def test_any_number_of_replicas_has_the_bits_of_one(terms):
    (alone,) = lived(1, **terms)
    for replicas in range(2, terms.get("islands", 4) + 1):
        for sums, met, _ in lived(replicas, **terms):
            assert sums == alone[0] and len(sums) == STEPS
            assert all(torch.equal(a, b) for a, b in zip(met, alone[1], strict=True))


def test_nothing_is_sent_between_two_meetings():
    for _, _, sent in lived(3):
        grown = [after - before for before, after in zip([0, *sent], sent, strict=False)]
        assert [step for step, more in enumerate(grown, 1) if more] == [4, 8, 11]


def test_in_the_first_steps_something_is_sent_after_each_if_asked():
    for _, _, sent in lived(2, together=3):
        grown = [after - before for before, after in zip([0, *sent], sent, strict=False)]
        assert [step for step, more in enumerate(grown, 1) if more] == [1, 2, 3, 7, 11]


def test_a_fragment_on_its_way_leaves_before_the_meeting():
    sent = [sum(each) for each in zip(*(sent for _, _, sent in lived(2, **STREAMING)), strict=True)]
    grown = [after - before for before, after in zip([0, *sent], sent, strict=False)]
    assert all(grown[:10])  # legs of two steps: sent off in the first, met in the second


def test_fragments_bring_only_their_part_together():
    (_, met, _), *_ = lived(2, fragments=4)
    first = torch.cat([p.detach().flatten() for p in MODULE.parameters()])
    moved = [torch.count_nonzero(after != before) for before, after in zip([first, *met], met, strict=False)]
    assert all(0 < int(count) < first.numel() // 2 for count in moved[:4]) and moved[-1] > first.numel() // 2


def test_the_loss_falls():
    (sums, _, _), *_ = lived(2)
    assert sums[-1].loss < sums[0].loss


def test_a_loss_that_is_not_finite_in_any_step_of_a_leg_is_not_applied_and_names_step_and_lane():
    def disturb(step):
        if step.number == 5 and 6 in step.span:
            step._losses[6 - step.span.start] = torch.tensor(math.nan)

    with pytest.raises(NotFinite, match=r"step 6: the loss of lane 6 is nan; nothing was applied"):
        lived(2, disturb)
