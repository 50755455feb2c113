"""Sources, model folders and the hub are looked at before anything is prepared."""

import json

from tests.launch.health.sick import TINY, bound, doctor, needs_root, one

NAMED = ["model.name=org/tiny", "model.family=llama"]
KEYS = "steps: 3\nlanes: 2\nmodel: {%s}\ndata: {source: texts}\n"


def recipe(folder, model):
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts" / "a.txt").write_text("some text\n")
    file = folder / "recipe.yaml"
    file.write_text(KEYS % model)
    return file


def test_a_source_that_is_not_there(tmp_path):
    found = doctor(tmp_path, TINY, f"data.source={tmp_path}/gone", code=4)
    one(found, "data", "failure", f"no file or folder {tmp_path}/gone")


def test_a_source_that_cannot_be_read(tmp_path):
    needs_root()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    import os

    os.chown(tmp_path / "a.txt", 4321, 4321)
    found = doctor(tmp_path, TINY, f"data.source={tmp_path}/a.txt", under=bound(), code=4)
    one(found, "data", "failure", "Permission denied")


def test_a_source_whose_package_is_not_installed(tmp_path):
    found = doctor(tmp_path, TINY, "data.source=gs://bucket/texts", code=4)
    one(found, "data", "failure", "reading gs:// needs another package")


def test_a_model_folder_without_weights(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = doctor(tmp_path, recipe(tmp_path, "path: m"), code=4)
    one(found, "model", "failure", "holds no model.safetensors")


def test_a_model_folder_that_is_not_there(tmp_path):
    found = doctor(tmp_path, recipe(tmp_path, "path: gone"), code=4)
    one(found, "model", "failure", "gone, which is no folder")


def test_a_named_model_without_a_network_by_choice(tmp_path):
    found = doctor(tmp_path, recipe(tmp_path, "name: org/tiny"), env={"HF_HUB_OFFLINE": "1"}, code=4)
    one(found, "model", "failure", "org/tiny is not in the local hub cache", "HF_HUB_OFFLINE forbids")


def test_a_named_model_without_a_network(tmp_path):
    needs_root("unshare")
    found = doctor(tmp_path, recipe(tmp_path, "name: org/tiny"), under=["unshare", "-n"], code=4)
    one(found, "model", "failure", "and the hub is not reached (huggingface.co")


def test_a_hub_cache_of_somebody_else(tmp_path):
    needs_root()
    import os

    (tmp_path / "hub").mkdir()
    os.chown(tmp_path / "hub", 4321, 4321)
    at = {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    found = doctor(tmp_path, recipe(tmp_path, "name: org/tiny"), under=bound(), env=at, code=4)
    one(found, "model", "failure", "which this user cannot write")
    one(found, "model", "failure", "the hub is not reached (127.0.0.1: Connection refused)")


def test_a_named_model_that_is_in_the_cache_needs_no_network(tmp_path):
    import torch
    from safetensors.torch import save_file

    snapshot = tmp_path / "hub" / "hub" / "models--org--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"w": torch.zeros(10, 10)}, snapshot / "model.safetensors")
    at = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    assert not [
        each for each in doctor(tmp_path, recipe(tmp_path, "name: org/tiny"), env=at) if each["check"] == "model"
    ]
