"""A run that was stopped anywhere goes on, on any number of replicas, to the model that it would have had."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from samestep.errors import DataError, RecipeError, VerifyError
from samestep.launch.local import Local
from samestep.recipe.load import dump
from samestep.recover import alternate, journal
from samestep.recover.journal import Journal
from samestep.verbs.audit import audit, clean
from samestep.verbs.prepare import prepare
from samestep.verbs.resume import resume
from samestep.verbs.train import Summary, execute, opening, train

RECIPE = Path("recipes/tiny.yaml").resolve()
STEPS, EVERY = 6, 2
CHANGES = [f"steps={STEPS}", f"recover.checkpoint_every={EVERY}", "recover.digest_every=1"]
NOWHERE = Console(quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """The undisturbed run."""
    return train(RECIPE, [*CHANGES, "run.replicas=2"], tmp_path_factory.mktemp("whole") / "run", "local", NOWHERE)


def stopped(run: Path, after: int, replicas: int = 2, beside: Path | None = None) -> Path:
    """A run folder as a kill leaves it after so many steps. beside: an alternate, which has all of its checkpoints."""
    changes = [*CHANGES, f"run.replicas={replicas}", f"run.alternate={beside or 'null'}"]
    prepared = prepare(RECIPE, changes, lambda line: None)
    run.mkdir()
    if beside:
        (run / "checkpoints").write_text("in the way")
        alternate.take(beside, run)
    (run / "recipe.yaml").write_text(dump(prepared.recipe))
    with Journal(run / "journal.jsonl", beside) as written:
        written.write(opening(prepared, 0.0))
        job = dataclasses.replace(prepared.job("train", run), stop=after, finish=False)
        execute(job, Local(), written, [])
    return run


def said(run: Path, *overrides: str) -> tuple[Summary, str]:
    console = Console(record=True, width=300, file=io.StringIO())
    return resume(run, overrides, "local", console), console.export_text()


@pytest.mark.parametrize(("after", "replicas"), [(1, 3), (4, 1), (5, 3)])
def test_it_ends_in_the_same_model_on_another_number_of_replicas(
    after: int, replicas: int, whole: Summary, tmp_path: Path
) -> None:
    summary, text = said(stopped(tmp_path / "run", after), f"run.replicas={replicas}")
    done = after - after % EVERY
    assert (summary.digest, summary.steps, summary.final_loss) == (whole.digest, STEPS, whole.final_loss)
    assert summary.tokens == whole.tokens
    assert f"resuming after step {done}, row {32 * done}, replicas 2 to {replicas}" in text
    assert (f"steps {done + 1} to {after} are computed again" in text) == (after > done)
    events = journal.read(tmp_path / "run/journal.jsonl")
    (resumed,) = (event for event in events if event["event"] == "resumed")
    assert (resumed["step"], resumed["last"], resumed["replicas"]) == (done, after, replicas)
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [2, 4, 6]
    state = "sharded" if replicas == 1 else "replicated"
    assert resumed["state"] == state and f"sync.state {state}: {resumed['state_reason']}\n" in text


def test_the_audit_of_a_resumed_run_is_clean(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", 5)
    resume(run, ["run.replicas=1"], "local", NOWHERE)
    found = audit(run, lambda line: None)
    assert clean(found) and (found.steps, found.lost, found.repeated) == (STEPS, 0, 0)
    lines = [event for event in journal.read(run / "journal.jsonl") if event["event"] != "step" or event["step"] != 3]
    (run / "journal.jsonl").write_bytes(b"".join(map(journal.encode, lines)))
    broken = audit(run, lambda line: None)
    assert not clean(broken) and broken.lost == 32 and "where step 3 was due" in broken.problems[0]


def test_it_passes_over_a_damaged_checkpoint_and_says_why(whole: Summary, tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", 4)
    shard = run / "checkpoints/step-4/shard-1-1-1.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    summary, text = said(run)
    assert summary.digest == whole.digest
    assert "passed over:" in text and "step-4/shard-1-1-1.safetensors: " in text and "resuming after step 2," in text


def test_a_step_that_comes_out_otherwise_than_before_stops_it(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", 3)
    lines = journal.read(run / "journal.jsonl")
    for event in lines:
        if event["event"] == "step" and event["step"] == 3:
            event["digest"] = "sha256:" + 64 * "0"
    (run / "journal.jsonl").write_bytes(b"".join(map(journal.encode, lines)))
    with pytest.raises(
        VerifyError, match=r"step 3 was computed again and has another digest \(sha256:[^,]+, before sha256:000"
    ):
        resume(run, [], "local", NOWHERE)


def test_changed_data_are_refused(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", 1)
    lines = journal.read(run / "journal.jsonl")
    lines[0]["rows_digest"] = "other"
    (run / "journal.jsonl").write_bytes(b"".join(map(journal.encode, lines)))
    with pytest.raises(DataError, match=r"began with rows_digest other, now it is .* restore them, or start anew"):
        resume(run, [], "local", NOWHERE)


def test_a_recipe_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", 1)
    text = (run / "recipe.yaml").read_text()
    assert "learning_rate: 0.003" in text
    (run / "recipe.yaml").write_text(text.replace("learning_rate: 0.003", "learning_rate: 0.002"))
    with pytest.raises(DataError, match=r"recipe.yaml is not what the run began with .* restore it, or start anew"):
        resume(run, [], "local", NOWHERE)


def test_what_would_change_numbers_is_refused(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", 1)
    with pytest.raises(RecipeError, match=r"optimizer.clip=2 may change the numbers .* only run\.\* can be set"):
        resume(run, ["optimizer.clip=2"], "local", NOWHERE)


def test_a_run_that_has_ended_is_not_resumed(whole: Summary) -> None:
    with pytest.raises(RecipeError, match="has ended; there is nothing to resume"):
        resume(Path(whole.run), [], "local", NOWHERE)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"journal.jsonl cannot be read: No such file"):
        resume(tmp_path, [], "local", NOWHERE)


def test_what_a_killed_save_left_is_deleted(whole: Summary, tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", 3)
    (run / "checkpoints/step-4.partial").mkdir()
    (run / "checkpoints/step-4.partial/shard-0.safetensors").write_text(json.dumps("half"))
    (run / f".best-new-{2**22 + 1}").mkdir()  # of a process that is no more
    assert resume(run, [], "local", NOWHERE).digest == whole.digest
    assert not list(run.glob(".*"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-2", "step-4", "step-6"]


def test_under_fast_where_each_replica_holds_everything_it_is_saved_once(tmp_path: Path) -> None:
    changes = ["steps=2", "recover.checkpoint_every=2", "sync.strategy=fast", "run.replicas=2"]
    train(RECIPE, changes, tmp_path / "run", "local", NOWHERE)
    told = [event["event"] for event in journal.read(tmp_path / "run/journal.jsonl")]
    assert told.count("checkpoint") == 1 and "checkpoint_failed" not in told


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("override", [[], ["run.replicas=3"]])
def test_it_goes_on_from_a_checkpoint_in_the_alternate(whole: Summary, tmp_path: Path, override: list[str]) -> None:
    run = stopped(tmp_path / "run", 5, beside=tmp_path / "beside")
    assert saved(tmp_path / "beside") == ["step-2", "step-4"]
    summary, text = said(run, *override)
    assert summary.digest == whole.digest and "resuming after step 4," in text
    assert saved(tmp_path / "beside") == ["step-2", "step-4", "step-6"]


def test_an_alternate_can_be_set_and_changed_when_it_is_resumed(whole: Summary, tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", 3, beside=tmp_path / "beside")
    (tmp_path / "beside/journal.jsonl").write_bytes(journal.encode({"event": "left behind"}))
    summary, text = said(run, f"run.alternate={tmp_path / 'new'}")
    assert summary.digest == whole.digest and "resuming after step 2," in text
    assert (saved(tmp_path / "beside"), saved(tmp_path / "new")) == (["step-2"], ["step-4", "step-6"])
    events = journal.read(run / "journal.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds.index("left behind") < kinds.index("resumed") and not (tmp_path / "beside/journal.jsonl").exists()
    assert [event.get("alternate") for event in events if event["event"] in ("opened", "resumed")] == [
        str(tmp_path / "beside"),
        str(tmp_path / "new"),
    ]


def test_lines_and_checkpoints_are_found_in_an_alternate_that_only_the_command_line_names(
    whole: Summary, tmp_path: Path
) -> None:
    run, beside = stopped(tmp_path / "run", 3), tmp_path / "beside"
    alternate.take(beside, run)
    (run / "checkpoints").rename(beside / "checkpoints")
    (beside / "journal.jsonl").write_bytes(journal.encode({"event": "left behind"}))
    summary, text = said(run, f"run.alternate={beside}")
    assert summary.digest == whole.digest and "resuming after step 2," in text
    assert "left behind" in [event["event"] for event in journal.read(run / "journal.jsonl")]


def test_another_run_s_alternate_is_refused_when_it_is_resumed(tmp_path: Path) -> None:
    stopped(tmp_path / "other", 2, beside=tmp_path / "beside")
    run = stopped(tmp_path / "run", 1)
    with pytest.raises(RecipeError, match=r"run\.alternate .*beside holds what is of the run .*other; choose another"):
        resume(run, [f"run.alternate={tmp_path / 'beside'}"], "local", NOWHERE)


def test_a_run_does_not_begin_with_an_alternate_that_holds_anything(tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/file").touch()
    with pytest.raises(RecipeError, match=r"run\.alternate .*beside is not an empty folder; choose another"):
        train(RECIPE, [*CHANGES, f"run.alternate={tmp_path / 'beside'}"], tmp_path / "run", "local", NOWHERE)
    assert not (tmp_path / "run").exists()
