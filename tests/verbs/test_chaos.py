"""samestep chaos: faults of every kind leave the model as it is, and where they do not, it says so."""

from dataclasses import replace
from pathlib import Path

import pytest

from samestep.recover.faults import KINDS, schedule
from samestep.verbs import chaos as verb
from samestep.verbs.chaos import Outcome, Verdict, counts, lines
from samestep.verbs.prepare import prepare

RECIPE = Path("recipes/tiny.yaml").resolve()
STEPS = ["steps=12", "run.replicas=3"]
SAME = Outcome(7, ["step 1 + 0: replica 0 (process 1) killed"], 0, dict.fromkeys(verb.COUNTED, 1), "a", 0, 0, [], 2.0)


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def prepared():
    return verb.ready(prepare(RECIPE, STEPS, quiet))


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    return verb.undisturbed(prepared, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_each_kind_leaves_the_model_as_it_is(prepared, whole, tmp_path, kind):
    faults = schedule(3, verb.scope(prepared), 1, [kind])
    outcome = verb.disturbed(prepared, tmp_path / "run", 3, faults, whole, quiet)
    assert outcome.problems == [] and len(outcome.struck) == 1 and outcome.missed == 0
    assert outcome.digest == whole.digest and (outcome.lost, outcome.repeated) == (0, 0)
    ended = {"halt": ("resumed", 1), "torn": ("resumed", 1), "flip": ("resumed", 1), "full": ("checkpoint_failed", 1)}
    counted, least = ended.get(kind, ("left", kind != "pause"))
    assert outcome.events[counted] >= least
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_model_is_found_and_its_run_kept(prepared, whole, tmp_path):
    other = replace(prepared, recipe=prepared.recipe.model_copy(update={"seed": 8}))
    outcome = verb.disturbed(other, tmp_path / "run", 1, (), whole, quiet)
    assert "different models" in outcome.problems[0] and outcome.run == str(tmp_path / "run")
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.slow
def test_the_command_says_each_strike_and_that_the_model_is_the_same(samestep, tiny):
    done = samestep("chaos", tiny, "steps=12", "--replicas", 2, "--seed", 2, "--faults", 2, "--json", timeout=240)
    assert done.code == 0, done.err
    assert done.json["same"] and [len(outcome["struck"]) for outcome in done.json["outcomes"]] == [2]
    assert done.err.count("seed 2, step ") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.yaml"], "missing.yaml: there is no such recipe"),
        ([RECIPE, "--replicas", "0"], "run.replicas is 0, but must be at least 1"),
        ([RECIPE, "steps=2"], "chaos was asked of a run of 2 steps, but needs 4"),
        ([RECIPE, "sync.strategy=fast"], "chaos compares bits, but sync.strategy is fast"),
    ],
)
def test_a_wrong_wish_is_answered_in_one_line(samestep, arguments, said):
    done = samestep("chaos", *arguments)
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1


def test_a_seed_that_is_no_number_is_a_wrong_use(samestep):
    done = samestep("chaos", RECIPE, "--seed", "x")
    assert done.code == 2 and "--seed" in done.err


def test_a_run_is_saved_four_times_at_least(prepared):
    assert verb.scope(prepared).checkpoint_every == 3
    saving = verb.ready(prepare(RECIPE, [*STEPS, "recover.checkpoint_every=2"], quiet))
    assert verb.scope(saving).checkpoint_every == 2


def test_the_verdict_ends_with_the_digest():
    verdict = Verdict(True, "r.yaml", "sha256:0", 12, [SAME], [])
    assert lines(verdict)[-1] == "the same model: sha256:0, 1 faults, lost 0, repeated 0"


def test_what_differs_is_named_with_the_command_that_plays_it_again():
    wrong = replace(SAME, seed=8, problems=["rows: 3 lost, 0 repeated"], run="/runs/8")
    found = lines(Verdict(False, "r.yaml", "sha256:0", 12, [SAME, wrong], ["samestep chaos r.yaml --seed 8"]))
    assert found[-4:] == [
        "seed 8: rows: 3 lost, 0 repeated",
        "kept: /runs/8",
        "NOT the same model in 1 of 2 runs; undisturbed it is sha256:0",
        "replay: samestep chaos r.yaml --seed 8",
    ]
    assert found[2].split()[-1] == "DIFFERENT"


def test_a_larger_generation_has_joined_some_unless_the_run_was_resumed():
    formed = [{"event": "formed", "replicas": count} for count in (2, 1, 2)]
    assert counts(formed)["joined"] == 1
    assert counts([*formed[:2], {"event": "resumed"}, formed[2]])["joined"] == 0
