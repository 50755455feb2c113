"""A replica of a real run hangs or disagrees: it is named within ten seconds, and the model is the same, or none."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from samestep.errors import ClusterError, PeerLost
from samestep.verbs import program
from tests.same.test_survivors_go_on import formed, lived, same

SETTINGS = {"steps": 50, "recover.checkpoint_every": 20, "recover.digest_every": 10, "evaluate.every": 0}
AT, SOON = 4, 10  # the step of the hang; seconds
WAITING = {"run.silent": "wait"}


class Stopper:
    """Stops a replica once step AT - 1 is told, and lets it go on where it was only told of."""

    def __init__(self, rank):
        self.rank, self.pids, self.began, self.named = rank, {}, None, None

    def __call__(self, event):
        if event["event"] == "started":
            self.pids.setdefault(event["rank"], event["pid"])
        if (event["event"], event.get("step")) == ("step", AT - 1) and self.began is None:
            os.kill(self.pids[self.rank], signal.SIGSTOP)
            self.began = time.monotonic()
        if event["event"] == "silent":
            self.named = time.monotonic()
            if not event["ended"]:
                threading.Timer(1, os.kill, (self.pids[self.rank], signal.SIGCONT)).start()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return lived(tmp_path_factory.mktemp("whole") / "run", {}, replicas=1, **SETTINGS)


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """(kind, hears, settings) -> the run, whose replica 1 hangs in step AT, and when it began to."""

    def run(kind, hears=None, replicas=3, **settings):
        monkeypatch.setenv("HANG", f"1 {AT} {kind} {replicas}")
        monkeypatch.setenv("HANG_BEGAN", str(tmp_path / "began"))
        monkeypatch.setattr(program, "REPLICA", (sys.executable, str(Path(__file__).with_name("hanging.py"))))
        return lived(tmp_path / "run", {}, replicas, hears=hears, **SETTINGS | settings)

    return run


def silences(events):
    return [event for event in events if event["event"] == "silent"]


def left(events):
    return [event["replica"] for event in events if event["event"] == "left"]


@pytest.mark.slow
def test_one_that_is_stopped_is_named_ended_and_replaced(hanging, undisturbed):
    stopper = Stopper(1)
    found = hanging("none", stopper)
    same(found, undisturbed)
    (silent,) = silences(found[1])
    assert (silent["replica"], silent["kind"], silent["ended"]) == (1, "stopped", True)
    assert AT - 1 <= silent["step"] < AT + 5 and f"in step {silent['step']}, {silent['phase']}, for" in silent["reason"]
    assert stopper.named - stopper.began < SOON
    assert left(found[1]) == [1] and formed(found[1]) == [(2, False), (3, False)]


@pytest.mark.slow
def test_one_that_is_stopped_is_only_named_where_the_recipe_says_wait(hanging, undisturbed):
    stopper = Stopper(1)
    found = hanging("none", stopper, **WAITING)
    same(found, undisturbed)
    (silent,) = silences(found[1])
    assert (silent["replica"], silent["kind"], silent["ended"]) == (1, "stopped", False)
    assert stopper.named - stopper.began < SOON
    assert left(found[1]) == [] and formed(found[1]) == []


@pytest.mark.slow
def test_one_that_waits_for_its_data_for_ever_is_named_with_its_stack_ended_and_replaced(
    hanging, undisturbed, tmp_path
):
    named = []
    found = hanging("locked", lambda event: named.append(time.monotonic()) if event["event"] == "silent" else None)
    same(found, undisturbed)
    (silent,) = silences(found[1])
    assert (silent["replica"], silent["kind"], silent["step"], silent["phase"]) == (1, "stuck", AT, "data")
    assert "reading at same/hanging.py:" in silent["reason"] and "steps at replica/train.py:" in silent["reason"]
    assert named[0] - float((tmp_path / "began").read_text()) < SOON
    assert left(found[1]) == [1] and formed(found[1]) == [(2, False), (3, False)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["size", "dtype", "step"])
def test_one_that_sends_something_else_than_is_due_ends_the_run_with_both_named(hanging, kind, tmp_path):
    steps = []
    with pytest.raises(ClusterError) as caught:
        hanging(kind, lambda event: steps.append(event["step"]) if event["event"] == "step" else None, replicas=2)
    assert not isinstance(caught.value, PeerLost)
    said = str(caught.value)
    assert "replica 1 sent" in said and "but" in said and f"(replica 0, step {AT}, " in said and "was due" in said
    assert steps == list(range(1, AT)) and not (tmp_path / "run" / "model").exists()
