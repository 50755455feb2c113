"""samestep plan RECIPE --gpu here: this machine, as a pilot has found it."""

import json
import subprocess
import sys

import pytest

from samestep.errors import RecipeError
from samestep.recipe.load import load
from samestep.verbs import calibration, here

SIZES = [512 * 64, *2 * [64 * 64, 64 * 64, 64 * 64, 64 * 64, 192 * 64, 192 * 64, 192 * 64, 64, 64], 64]
MEASURED = {
    "replicas": 2,
    "cores": 2,
    "alone": 0.010,
    "forward": 0.004,
    "backward": 0.008,
    "update": 2e-9,
    "pass_": 1e-9,
    "coding": {"int8": 2e-9, "bfloat16": 1e-9, "int4": 2e-9},
    "exchange": [[1024, 1e-4], [1 << 25, 0.02]],
    "sizes": SIZES,
    "frozen": {"all": 0, "mapped": 0, "wide": False},
    "program": {"private": 170_000_000, "mapped": 100_000_000},
    "vocabulary": 512,
    "steps": {"micro": 0.012, "exchange": 0.003, "update": 0.005},
    "sync": {"strategy": "exact", "formats": ["float32", "float32"], "copies": 8},
}


@pytest.fixture
def piloted(tiny, cache):
    """Overrides of the tiny recipe, a micro-batch of which has been measured."""
    overrides = [f"run.cache={cache}"]
    calibration.keep(load(tiny, overrides), tiny.parent, MEASURED, rows=1000)
    return overrides


def test_each_number_of_replicas_has_time_memory_and_bytes(tiny, piloted):
    found = here.plan(tiny, piloted, None)
    assert [row.replicas for row in found.rows] == [1, 2, 3, 4]
    one, two, *_ = found.rows
    assert two.step == pytest.approx({"compute": 4 * 2 * 0.012, "exchange": 0.003, "update": 0.005})
    assert one.step["compute"] == pytest.approx(8 * 2 * 0.012 * 10 / 12)
    assert one.sent == [0] and len(two.sent) == 2 and two.machine < 2 * two.memory
    assert 1 == one.efficiency > two.efficiency > found.rows[2].efficiency


def test_steps_lanes_and_formats_may_change_without_another_pilot(tiny, piloted):
    plain = here.plan(tiny, piloted, "4").rows[0]
    few = here.plan(tiny, [*piloted, "sync.wire=int8", "steps=99"], "4")
    assert few.steps == 99 and max(few.rows[0].sent) < max(plain.sent) / 2
    islands = here.plan(tiny, [*piloted, "sync.strategy=diloco", "sync.diloco.every=6"], "4").rows[0]
    assert max(islands.sent) < max(plain.sent) / 5 and islands.memory > plain.memory
    assert here.plan(tiny, [*piloted, "lanes=4"], "4").rows[0].step["compute"] == plain.step["compute"] / 2


@pytest.mark.parametrize(
    ("changes", "replicas", "says"),
    [
        (["batch.micro_batch=3"], None, "no pilot has measured a micro-batch of .*tiny.yaml on this machine; run"),
        (["data.context=32"], None, "no pilot has measured"),
        (["sync.strategy=auto"], None, "--gpu here plans one strategy, but sync.strategy is auto"),
        ([], "9", "--replicas 9 asks for 9, but a step has 8 shares; take fewer"),
        ([], "two", "--replicas two is no list of numbers of replicas"),
        (["run.hosts={a: {address: 10.1.1.1, replicas: 2}}"], None, "is this machine, but run.hosts names several"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(tiny, piloted, changes, replicas, says):
    with pytest.raises(RecipeError, match=says):
        here.plan(tiny, [*piloted, *changes], replicas)


def test_a_model_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="--gpu here takes a recipe, but"):
        here.plan(tmp_path, [], None)


def test_the_table_says_what_the_fastest_spends_time_and_memory_on(tiny, piloted):
    text = "\n".join(here.lines(here.plan(tiny, piloted, None)))
    for words in ("memory each", "sent a step", "a step     compute", "memory     program", "a pilot on 2 replicas"):
        assert words in text


def test_what_does_not_fit_is_marked(tiny, piloted, monkeypatch):
    monkeypatch.setattr(here, "free", lambda: 100_000_000)
    assert all(line.endswith(", more than is free") for line in here.lines(here.plan(tiny, piloted, "1,2"))[4:6])


def test_no_torch_is_needed_and_json_holds_everything(tiny, piloted):
    code = "import sys; from samestep.cli.app import main\n"
    code += "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, "plan", str(tiny), "--gpu", "here", "--json", *piloted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert done.stderr.strip() == "False"
    assert {"machine", "piloted", "rows", "free"} <= set(found)
    assert {"seconds", "step", "memory", "parts", "machine", "sent", "state"} <= set(found["rows"][0])


def test_a_pilot_is_kept_by_processor_versions_and_micro_batch(tiny, cache, tmp_path):
    recipe = load(tiny, [f"run.cache={tmp_path}"])
    file = calibration.keep(recipe, tiny.parent, MEASURED, 10)
    assert calibration.keep(recipe, tiny.parent, MEASURED | {"cores": 3}, 10) == file
    assert calibration.known(recipe, tiny.parent, "x")["measured"]["cores"] == 3
    assert list(file.parent.iterdir()) == [file]
    assert calibration.known(recipe, tiny.parent, "x")["machine"] == calibration.machine()


def test_a_machine_without_cpuinfo_has_a_name(tmp_path):
    assert calibration.machine(tmp_path / "none")["cpu"]
