"""What a replica saves in the background is what the run goes on from."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from samestep.errors import Corrupted
from samestep.model.optim import AdamW
from samestep.recipe.schema import Recipe
from samestep.recover import checkpoint
from samestep.recover.disk import Disk
from samestep.recover.keeper import Keeper
from samestep.replica.checkpoints import Checkpoints
from samestep.replica.job import Job
from samestep.replica.step import Step
from samestep.wire import loopback


class Watched:
    """In the place of a Watch."""

    def __init__(self, seen):
        self.seen = seen

    def state(self):
        return self.seen

    def restore(self, seen):
        self.seen = seen


def begun(scrub=0):
    torch.manual_seed(0)
    module = nn.Linear(6, 40)
    return module, Step(module, loopback.connect(1)[0], AdamW(), lanes=2, scrub=scrub)


def trained(steps, scrub=0):
    module, step = begun(scrub)
    for _ in range(steps):
        for lane in step.lanes:
            step.backward(module(torch.full((3, 6), 1.0 + lane)).square().sum() / 12)
        step.update(1e-2)
    return step


def saved(job, step, watch, told):
    """The folder of the checkpoint; training goes on while it is written."""
    saving, keeper = Checkpoints(job, step, watch, told, Disk()), Keeper(job.places, 1, Disk())
    saving.enter(loopback.connect(1)[0], 1)
    saving.save("sha256:0")
    step.state.weights.zero_()
    watch.seen = None
    saving.wait()
    for event in told.of("shard"):
        keeper.shard(event)
    keeper.close()
    assert [event["event"] for event in keeper.told()] == ["checkpoint"]
    return checkpoint.folder_of(job.run / checkpoint.FOLDER, step.number)


def test_a_run_goes_on_with_all_that_was_there_when_it_was_saved(tmp_path, told):
    job = Job("train", Recipe(steps=9), tmp_path, [], tmp_path, 9, 9)
    seen = {"last": 2, "best": 1.5, "waited": 1}
    folder = saved(job, trained(3), Watched(seen), told())
    (_, step), watch, wanted = begun(), Watched(None), trained(3)
    saving = Checkpoints(replace(job, checkpoint=folder), step, watch, told(), Disk())
    saving.resume()
    assert (saving.begun, step.number, step.state.updates, watch.seen) == (3, 3, [3, 3], seen)
    for region in step.layout.regions:  # the padding between them is nobody's
        assert torch.equal(step.state.weights[slice(*region)], wanted.state.weights[slice(*region)])
    for region, moments in step.state.moments.items():
        assert all(map(torch.equal, moments, wanted.state.moments[region]))


def test_what_has_changed_while_it_rested_is_not_saved(tmp_path, told):
    job, step, line = Job("train", Recipe(steps=9), tmp_path, [], tmp_path, 9, 9), trained(2, scrub=1), told()
    next(iter(step.state.moments.values()))[1][5] += 1
    saving = Checkpoints(job, step, Watched(None), line, Disk())
    saving.enter(loopback.connect(1)[0], 1)
    with pytest.raises(Corrupted, match="moment1 of weight to bias changed while it rested after step 2"):
        saving.save("sha256:0")
    assert not line.of("shard")


def test_it_is_saved_where_it_is_due_and_before_a_stop(tmp_path, told):
    job = Job("train", Recipe(steps=9, recover={"checkpoint_every": 2}), tmp_path, [], tmp_path, 9, 9)
    line, step = told(), SimpleNamespace(number=0)
    saving = Checkpoints(job, step, Watched(None), line, Disk())
    due = []
    saving.save = lambda digest: due.append((step.number, digest))
    for step.number in range(1, 6):
        step.since = step.number - 1
        saving.after(f"digest {step.number}", stop=step.number == 5)
    assert due == [(n, f"digest {n}") for n in (2, 4, 5)]


def test_where_several_steps_are_committed_at_once_a_step_between_them_counts(tmp_path, told):
    job = Job("train", Recipe(steps=20, recover={"checkpoint_every": 5}), tmp_path, [], tmp_path, 20, 20)
    line, step = told(), SimpleNamespace(number=0)
    saving = Checkpoints(job, step, Watched(None), line, Disk())
    due = []
    saving.save = lambda digest: due.append(step.number)
    for step.since, step.number in ((0, 4), (4, 8), (8, 12), (12, 16), (16, 20)):
        saving.after(None, stop=False)
    assert due == [8, 12, 16, 20]


def beside(tmp_path, full):
    """A job with an alternate, whose run folder takes no checkpoint where `full`."""
    for name in ("run", "alternate"):
        (tmp_path / name).mkdir()
    if full:
        (tmp_path / "run/checkpoints").write_text("in the way")
    recipe = Recipe(steps=9, run={"alternate": str(tmp_path / "alternate")})
    return Job("train", recipe, tmp_path, [], tmp_path / "run", 9, 9)


@pytest.mark.parametrize(("full", "where"), [(False, "run"), (True, "alternate")])
def test_a_shard_that_the_run_folder_refuses_goes_to_the_alternate_and_says_so(tmp_path, told, full, where):
    job, line = beside(tmp_path, full), told()
    saving = Checkpoints(job, trained(3), Watched(None), line, Disk())
    saving.enter(loopback.connect(1)[0], 1)
    saving.save("sha256:0")
    saving.wait()
    (event,) = line.of("shard")
    assert event["folder"] == str(tmp_path / where / "checkpoints/step-3.partial")
    assert (tmp_path / where / "checkpoints/step-3.partial" / event["file"]).is_file()
    assert [failed["attempt"] for failed in line.of("save_failed")] == [1, 2, 3] * full


def test_a_shard_that_no_disk_takes_is_given_up(tmp_path, told):
    job, line = beside(tmp_path, full=True), told()
    (tmp_path / "alternate").rmdir()
    saving = Checkpoints(job, trained(1), Watched(None), line, Disk())
    saving.enter(loopback.connect(1)[0], 1)
    saving.save("sha256:0")
    saving.wait()
    (event,) = line.of("shard")
    assert (event["folder"], event["file"], event["shard"]) == (None, None, None)
    reasons = [failed["reason"] for failed in line.of("save_failed")]
    assert len(reasons) == 6 and "run/checkpoints" in reasons[0] and "alternate/checkpoints" in reasons[3]


def test_what_is_in_the_alternate_is_gone_on_with(tmp_path, told):
    job = beside(tmp_path, full=True)
    line = told()
    saving = Checkpoints(job, trained(3), Watched(7), line, Disk())
    keeper = Keeper(job.places, 1, Disk())
    saving.enter(loopback.connect(1)[0], 1)
    saving.save("sha256:0")
    saving.wait()
    keeper.shard(line.of("shard")[0])
    keeper.close()
    found, _ = checkpoint.newest(*job.places)
    (_, step), watch = begun(), Watched(None)
    Checkpoints(replace(job, checkpoint=found.folder), step, watch, told(), Disk()).resume()
    assert (step.number, watch.seen) == (3, 7)
