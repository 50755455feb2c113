"""A run that ends after any step goes on, on another number of replicas, to the model of the undisturbed run."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from samestep.recover import checkpoint, journal
from samestep.verbs.audit import audit, clean
from samestep.verbs.resume import resume
from samestep.verbs.train import train

RECIPE = Path("recipes/tiny.yaml").resolve()
CHANGES = ["steps=null", "epochs=3", "recover.checkpoint_every=1", "recover.keep=1000", "sample.prompt=null"]
REPLICAS, OTHERS = 2, (1, 3, 4)
NOWHERE = Console(quiet=True)
PLACES = {  # steps and epochs of one step each -> the step after which it ends
    "inside an epoch": lambda epochs: epochs.count(0) // 2,
    "between two epochs": lambda epochs: epochs.count(0),
    "before the last step": lambda epochs: len(epochs) - 1,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed run, with a checkpoint of each step."""
    run = tmp_path_factory.mktemp("whole") / "run"
    summary = train(RECIPE, [*CHANGES, f"run.replicas={REPLICAS}"], run, "local", NOWHERE)
    assert checkpoint.steps(run / checkpoint.FOLDER)[-1] == 1
    return summary


def epochs_of(whole):
    events = journal.read(Path(whole.run) / "journal.jsonl")
    return [event["epoch"] for event in events if event["event"] == "step"]


def left(whole, step, run):
    """The folder as a kill leaves it once the checkpoint of `step` is there; step 0: before the first."""
    shutil.copytree(whole.run, run, ignore=shutil.ignore_patterns("model", "logs", "journal.jsonl"))
    for saved in checkpoint.steps(run / checkpoint.FOLDER):
        if saved > step:
            shutil.rmtree(checkpoint.folder_of(run / checkpoint.FOLDER, saved))
    events = journal.read(Path(whole.run) / "journal.jsonl")
    last = ("checkpoint", step) if step else ("started", None)
    end = next(n for n, event in enumerate(events, 1) if (event["event"], event.get("step")) == last)
    (run / "journal.jsonl").write_bytes(b"".join(map(journal.encode, events[:end])))
    return run


def problem(whole, step, run):
    """What is amiss where it goes on after `step`, if anything is."""
    summary = resume(left(whole, step, run), [f"run.replicas={OTHERS[step % len(OTHERS)]}"], "local", NOWHERE)
    found = audit(run, lambda line: None)
    (resumed,) = (event for event in journal.read(run / "journal.jsonl") if event["event"] == "resumed")
    same = (summary.digest, summary.steps, summary.tokens) == (whole.digest, whole.steps, whole.tokens)
    return None if same and clean(found) and resumed["step"] == step else f"after step {step}: {summary}, {found}"


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_it_goes_on_to_the_same_model_with_no_row_lost_or_repeated(place, whole, tmp_path):
    assert problem(whole, PLACES[place](epochs_of(whole)), tmp_path / "run") is None


@pytest.mark.long
def test_it_does_so_after_each_step_of_three_epochs(whole, tmp_path):
    epochs = epochs_of(whole)
    found = [problem(whole, step, tmp_path / f"run-{step}") for step in range(len(epochs) + 1)]
    print(f"{len(found)} runs taken up again, of {epochs[-1] + 1} epochs with {len(epochs)} steps")
    assert [what for what in found if what] == [] and epochs[-1] == 2
