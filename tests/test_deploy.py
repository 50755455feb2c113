"""Dockerfile, .dockerignore and the SkyPilot task, as far as they can be held without Docker and without a cloud."""

import os
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from samestep.launch.kubernetes import USER

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SKYPILOT = (ROOT / "deploy" / "skypilot.yaml").read_text()


def instructions():
    """(word, rest) of each; comments and continued lines as Docker has them."""
    lines = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def copied():
    return [source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]]


def fits(name, pattern):
    """Whether a line of .dockerignore names the path, or a folder that it is in."""
    path = Path(name)
    if pattern.startswith("**/"):
        return pattern.removeprefix("**/") in path.parts
    return any(fnmatch(str(each), pattern) for each in (path, *path.parents) if "/" not in str(each))


def ignored(name):
    """The last line that fits decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and fits(name, line.removeprefix("!")):
            verdict = not line.startswith("!")
    return verdict


def test_what_is_copied_is_there_and_sent_to_docker():
    assert {"pyproject.toml", "README.md", "LICENSE", "samestep", "recipes"} == set(copied())
    for source in copied():
        assert (ROOT / source).exists() and not ignored(source)
    assert not ignored("samestep/cli/app.py")


@pytest.mark.parametrize("name", ["runs", "models", "data", ".git", ".venv", "tests", ".env", "samestep/__pycache__"])
def test_nothing_else_is_sent(name):
    assert ignored(name)


def test_what_the_package_is_built_from_is_copied():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied())
    extras = next(rest for word, rest in instructions() if word == "ARG" and rest.startswith("EXTRAS="))
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= set(project["optional-dependencies"])


def test_torch_comes_first_and_is_the_one_that_everything_is_tested_with():
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2 and '"torch==${TORCH}"' in installs[0] and ".[${EXTRAS}]" in installs[1]
    tested = re.search(r"torch==([0-9.]+)", (ROOT / "scripts" / "setup").read_text())[1]
    assert ("ARG", f"TORCH={tested}") in instructions()
    assert f"torch=={tested}" in SKYPILOT


def test_the_image_runs_samestep_without_rights():
    last = dict(instructions())
    assert last["USER"] == str(USER) and f"--uid {USER} " in DOCKERFILE
    assert last["ENTRYPOINT"] == '["samestep"]' and last["HEALTHCHECK"] == "NONE"
    words = [word for word, _ in instructions()]
    assert "RUN" not in words[words.index("USER") :]


def test_the_task_is_a_spot_job_whose_run_folder_is_in_a_bucket():
    task = yaml.safe_load(SKYPILOT)
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["file_mounts"]["/runs"]["mode"] == "MOUNT_CACHED"
    assert (ROOT / task["envs"]["RECIPE"]).exists()


@pytest.fixture
def rented(tmp_path):
    """Run the task's `run` with /runs in a folder and a samestep that says how it was called."""
    task = yaml.safe_load(SKYPILOT)
    program = tmp_path / "samestep-venv" / "bin" / "samestep"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"\nexit 75\n')
    program.chmod(0o755)
    given = os.environ | task["envs"] | {"HOME": str(tmp_path), "SKYPILOT_NUM_GPUS_PER_NODE": "2"}

    def run():
        script = task["run"].replace("/runs/", f"{tmp_path}/runs/")
        done = subprocess.run(["bash", "-c", script], env=given, capture_output=True, text=True, timeout=20)
        return done.returncode, done.stdout.replace(str(tmp_path), "").split()

    return run


def test_a_run_begins_once_and_is_resumed_from_then_on(rented, tmp_path):
    code, words = rented()
    assert code == 75  # the code reaches SkyPilot
    assert words == ["train", "recipes/quickstart.yaml", "--run", "/runs/quickstart", "--replicas", "2"]
    journal = tmp_path / "runs" / "quickstart" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    journal.touch()
    assert rented()[1][0] == "train"
    journal.write_text("{}\n")
    assert rented()[1] == ["resume", "/runs/quickstart", "--replicas", "2"]


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_scripts_of_the_task_are_bash(part):
    script = yaml.safe_load(SKYPILOT)[part]
    assert subprocess.run(["bash", "-n", "-c", script], capture_output=True, timeout=20).returncode == 0
