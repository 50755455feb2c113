"""Sinks get the numbers of a run; what they raise ends none. The real packages where they are installed."""

import importlib.util
import inspect
import json
import subprocess
import sys

import pytest

from samestep.errors import RecipeError
from samestep.recipe.load import load
from samestep.report import sinks
from samestep.report.sinks import SINKS, Sink, Sinks, numbers


def events(made):
    return [made.step(1), made.spent(0, 1, 1), {"event": "evaluated", "step": 1, "loss": 2.5}, made.step(2, loss=None)]


def test_the_numbers_of_an_event_are_finite_and_named(made):
    step, spent, evaluated, nan = map(numbers, events(made))
    assert step["loss"] == 6.0 and step["tokens_per_second"] == 2000 and evaluated == {"held_out_loss": 2.5}
    assert spent["backward/replica_0"] == 0.2 and spent["memory/replica_0"] == 3e8
    assert "loss" not in nan and numbers({"event": "checkpoint", "step": 3}) == {}


def test_a_sink_is_told_of_each_step_and_closed(made, tmp_path, monkeypatch):
    told = []
    monkeypatch.setitem(SINKS, "wandb", lambda *_: Sink(lambda *said: told.append(said), lambda: told.append("closed")))
    both = Sinks(["wandb"], tmp_path, {}, print)
    for event in events(made):
        both(event)
    both.close()
    assert [each[0] for each in told[:-1]] == [1, 1, 1, 2] and told[-1] == "closed"


def test_a_sink_that_fails_is_said_once_and_left_out(made, tmp_path, monkeypatch):
    def fails(step, found):
        raise ConnectionError("no route")

    said, told = [], []
    monkeypatch.setitem(SINKS, "wandb", lambda *_: Sink(fails, lambda: told.append("closed")))
    monkeypatch.setitem(SINKS, "mlflow", lambda *_: Sink(lambda *said: told.append(said), lambda: None))
    both = Sinks(["wandb", "mlflow"], tmp_path, {}, said.append)
    for event in events(made):
        both(event)
    both.close()
    assert said == ["run.sinks wandb: ConnectionError: no route; it is left out from here on"] and len(told) == 4


@pytest.mark.parametrize("name", SINKS)
def test_a_package_that_is_not_installed_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else sys)
    with pytest.raises(RecipeError, match=rf"run.sinks asks for {name}, which is not installed; .*samestep\[{name}\]"):
        sinks.refuse_missing(list(SINKS))
    sinks.refuse_missing([other for other in SINKS if other != name])


def test_a_sink_that_cannot_begin_ends_the_run_before_it_has_begun(tmp_path, monkeypatch):
    def make(run, recipe):
        raise ConnectionError("no route")

    monkeypatch.setitem(SINKS, "wandb", make)
    with pytest.raises(RecipeError, match="asks for wandb, which cannot begin: ConnectionError: no route; set it up"):
        Sinks(["wandb"], tmp_path, {}, print)


def test_what_a_sink_prints_is_not_on_stdout(made, tmp_path, monkeypatch, capsys):
    def make(run, recipe):
        print("hello")
        return Sink(lambda step, found: print("told"), lambda: print("bye"))

    monkeypatch.setitem(SINKS, "wandb", make)
    sink = Sinks(["wandb"], tmp_path, {}, print)
    sink(made.step(1))
    sink.close()
    assert capsys.readouterr() == ("", "hello\ntold\nbye\n")


def test_the_recipe_knows_the_names_of_the_menu(tmp_path):
    (tmp_path / "r.yaml").write_text(f"steps: 1\nrun: {{sinks: {json.dumps(list(SINKS))}}}\n")
    assert load(tmp_path / "r.yaml").run.sinks == list(SINKS)
    (tmp_path / "r.yaml").write_text("steps: 1\nrun: {sinks: [tensorbord]}\n")
    with pytest.raises(RecipeError, match=r"run.sinks.*must be"):
        load(tmp_path / "r.yaml")


def test_tensorboard_reads_what_it_was_told(made, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed; pip install 'samestep[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with_it = Sinks(["tensorboard"], tmp_path, {}, print)
    for event in events(made):
        with_it(event)
    with_it.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(1, 6.0)]
    assert [each.step for each in found.Scalars("learning_rate")] == [1, 2]


# Each in a process of its own: they leave threads and global state behind
REAL = {
    "mlflow": "import os; os.environ |= {'MLFLOW_TRACKING_URI': 'file:./runs', 'MLFLOW_ALLOW_FILE_STORE': 'true'}",
    "wandb": "import os; os.environ['WANDB_MODE'] = 'offline'",
    "trackio": "import os; os.environ['TRACKIO_DIR'] = os.getcwd()",
}
TOLD = """
import sys
from pathlib import Path
{first}
from samestep.report.sinks import Sinks
said = []
sink = Sinks([{name!r}], Path("run-1").resolve(), {{"seed": 1}}, said.append)
step = {{"event": "step", "tokens": 10, "seconds": 0.5, "epoch": 0, "gradient_norm": 1.0, "learning_rate": 0.1}}
for n in (1, 2):
    sink(step | {{"step": n, "loss": 3.0 / n}})
sink.close()
assert said == [], said
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_real_package_takes_it(name, tmp_path):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed here; pip install 'samestep[{name}]'")
    (tmp_path / "run-1").mkdir()
    code = TOLD.format(first=REAL[name], name=name)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""


def test_the_menu_is_thin():
    assert all(len(inspect.getsource(make).splitlines()) < 20 for make in SINKS.values())
