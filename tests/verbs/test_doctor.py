"""samestep doctor as a user sees it: a healthy machine, a sick one, and what is printed of both."""

import json
import time

import pytest

from samestep.launch.health.finding import Finding, Need, split
from samestep.recipe.load import load
from samestep.recover import checkpoint
from samestep.verbs import doctor as verb
from samestep.verbs.doctor import Diagnosis, lines
from samestep.verbs.needs import need_of, places_of
from tests.launch.health.sick import TINY, doctor

CAUSES = ("limits", "cores", "memory")  # that another load on the machine may be, while tests run


def test_a_healthy_machine_is_not_found_fault_with(samestep, tmp_path):
    before = set(tmp_path.iterdir())
    result = samestep("doctor", TINY, f"run.cache={tmp_path}/cache", "--run", tmp_path / "run", "--json")
    said = result.json
    wrong = [each for each in said["findings"] if each["level"] != "ok"]
    assert [each for each in wrong if not literally_true(each, said)] == []
    assert (result.code, said["fails"]) == ((4, True) if any(e["level"] == "failure" for e in wrong) else (0, False))
    assert set(tmp_path.iterdir()) == before
    checks = ["limits", "kernel", "packages", "gpu", "run folder", "cache", "names", "model", "data"]
    assert {each["check"] for each in said["findings"]} >= set(checks) - {each["check"] for each in wrong}
    assert list(said["machine"]) == ["processor", "memory", "gpu", "kernel", "python", "torch", "disk"]


def literally_true(finding, said):
    """Of a machine that others use too: a disk that is slow just now, fewer cores than replicas, little memory."""
    if finding["check"] in ("run folder", "cache"):
        return "the disk of " in finding["what"] and (" to sync " in finding["what"] or "/s" in finding["what"])
    if finding["check"] == "cores":
        return " 1 of " in said["machine"]["processor"]
    return False


def test_without_hosts_it_takes_few_seconds(tmp_path):
    doctor(tmp_path)
    began, used = time.monotonic(), time.process_time()
    doctor(tmp_path, TINY)
    assert time.monotonic() - began < 10 and time.process_time() - used < 1  # three on a machine that is idle


def test_the_words_for_a_terminal(samestep, tmp_path):
    result = samestep("doctor", TINY, f"data.source={tmp_path}/gone", "--run", "run")
    assert result.code == 4 and "\x1b" not in result.out
    said = result.out.splitlines()
    assert said[0].startswith("processor  ") and said[-1] == "training would fail here"
    (line,) = [line for line in said if line.startswith("failure")]
    assert line.startswith(f"failure data: no file or folder {tmp_path}/gone; ")


def test_a_recipe_that_cannot_be_read_is_told_of_as_ever(samestep, tmp_path):
    (tmp_path / "bad.yaml").write_text("stesp: 3\n")
    result = samestep("doctor", "bad.yaml", "--json")
    assert result.code == 2 and "did you mean steps?" in json.loads(result.out)["error"]


@pytest.mark.parametrize("ports", ["x", "0", "70000", "80,"])
def test_a_port_is_a_number(samestep, ports):
    result = samestep("doctor", "--ports", ports, "--json")
    assert (result.code == 2) == (ports != "80,")


def test_the_worst_is_told_first_and_colours_are_for_terminals_only():
    found = [
        Finding("a", "ok", "fine"),
        Finding("b", "failure", "bad", "mend it"),
        Finding("c", "warning", "hm", "see"),
    ]
    plain = list(lines(Diagnosis({"kernel": "Linux"}, found)))
    assert plain == [
        "kernel  Linux",
        "",
        "failure b: bad; mend it",
        "warning c: hm; see",
        "ok      a: fine",
        "",
        plain[-1],
    ]
    assert "\x1b[31mfailure\x1b[0m b" in list(lines(Diagnosis({"kernel": "Linux"}, found), colour=True))[2]
    assert Diagnosis({}, found).fails and not Diagnosis({}, found[:1]).fails


def test_an_error_is_a_finding_with_its_fix():
    assert split("x", "asked, true; and so; do it") == Finding("x", "failure", "asked, true; and so", "do it")
    assert split("x", "no fix").fix


# What is needed


@pytest.mark.slow
def test_room_on_the_disk_is_asked_for_as_a_run_takes_it(samestep, tmp_path):
    run, changes = tmp_path / "run", ["steps=4", "recover.checkpoint_every=2"]
    assert samestep("train", TINY, "--run", run, *changes).code == 0
    need = need_of(load(TINY, changes), tmp_path, load(TINY, changes).model)
    (saved, *_) = checkpoint.saved(*checkpoint.places(run))
    taken = sum(file.stat().st_size for file in saved.folder.iterdir())
    assert need.checkpoint <= taken <= 1.2 * need.checkpoint
    model = sum(file.stat().st_size for file in (run / "model").glob("*.safetensors"))
    assert need.model <= model <= 1.2 * need.model


def test_hosts_are_filled_in_their_order():
    hosts = {name: {"address": f"10.0.0.{n}", "replicas": 2} for n, name in enumerate("abc", 1)}
    recipe = load(TINY, [f"run.hosts={json.dumps(hosts)}", "run.replicas=3"])
    assert places_of(recipe.run) == (2, 1)
    assert places_of(load(TINY, ["run.replicas=4"]).run) == (4,)


@pytest.mark.parametrize(
    ("changes", "shares"), [([], 8), (["sync.wire=int8"], 2), (["sync.strategy=diloco", "sync.diloco.every=20"], 0.4)]
)
def test_what_a_host_sends_follows_the_strategy(changes, shares, tmp_path):
    hosts = {name: {"address": f"10.0.0.{n}"} for n, name in enumerate("ab", 1)}
    recipe = load(TINY, [f"run.hosts={json.dumps(hosts)}", "run.replicas=2", *changes])
    need = need_of(recipe, tmp_path, recipe.model)
    assert need.sent == pytest.approx(shares * need.model / 4 / 2, abs=1)


def test_new_weights_of_another_architecture_are_not_guessed(tmp_path):
    recipe = load(TINY, [])
    model = recipe.model.model_copy(update={"config": "config.json"})
    need = need_of(recipe, tmp_path, model)
    assert (need.memory, need.model, need.checkpoint, need.near) == (None, None, None, (2,))


def test_of_hosts_and_ports_commas_part_them():
    assert verb.words(" a, b ,") == ["a", "b"] and verb.numbers("1,2") == [1, 2] and Need().replicas == 1
