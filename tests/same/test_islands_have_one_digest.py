"""Law 1 for islands: replicas, deaths, joins and resumes change nothing of what the islands learn."""

import pytest

from tests.same.test_survivors_go_on import formed, lived, same

DILOCO = {
    "steps": 26,
    "sync.strategy": "diloco",
    "sync.diloco.every": 4,
    "recover.checkpoint_every": 8,
    "evaluate.every": 8,
    "evaluate.best": True,
}
STREAMING = DILOCO | {
    "sync.diloco.fragments": 2,
    "sync.diloco.overlap": 1,
    "sync.diloco.mix": 0.5,
    "sync.diloco.together": 4,
}
KINDS = {"diloco": DILOCO, "streaming": STREAMING}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """The settings, and the undisturbed run on one replica."""
    settings = KINDS[request.param]
    return settings, lived(tmp_path_factory.mktemp("whole") / "run", {}, replicas=1, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_any_number_of_replicas_carries_them_to_the_same_model(kind, replicas, tmp_path):
    settings, whole = kind
    same(lived(tmp_path / "run", {}, replicas=replicas, **settings), whole)


@pytest.mark.slow
def test_a_death_takes_its_islands_along_and_all_go_on_from_the_checkpoint(kind, tmp_path):
    settings, whole = kind
    found = lived(tmp_path / "run", {12: [1]}, **settings, **{"run.replace": False})
    same(found, whole)
    assert formed(found[1]) == [(2, True)]
    assert [event["step"] for event in found[1] if event["event"] == "resumed"] == [8]


@pytest.mark.slow
def test_one_that_joins_is_handed_islands_while_the_run_goes_on(tmp_path):
    enough = STREAMING | {"steps": 150, "recover.checkpoint_every": 50, "evaluate.every": 0, "evaluate.best": False}
    found = lived(tmp_path / "run", {52: [1]}, **enough)
    assert formed(found[1]) == [(2, True), (3, False)]
    same(found, lived(tmp_path / "whole", {}, replicas=1, **enough))
