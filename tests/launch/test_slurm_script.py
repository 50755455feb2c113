"""The batch script, as a golden file, and what bash makes of it with Slurm's commands replaced by small ones."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from samestep.errors import RecipeError
from samestep.launch.slurm import Wanted, script

GOLDEN = {engine: Path(__file__).parent / f"slurm_{engine}.golden.sh" for engine in ("env", "ray")}
WANTED = Wanted(
    "samestep-tiny",
    [Path("/shared/recipes/tiny.yaml"), Path("/shared/it's $HOME.yaml")],
    [Path("/shared/runs/tiny"), Path("/shared/runs/a b")],
    Path("/shared/runs/launch"),
    4,
    2,
    8,
    ["/opt/my python/bin/python", "-m", "samestep.cli"],
    Path("/shared/work dir"),
    ["optimizer.clip=0.5", 'sample.prompt="$(rm -rf ~)"'],
    "1-12:00:00",
    "gpu",
    ["--account=physics"],
)


@pytest.mark.parametrize("engine", GOLDEN)
def test_the_script_is_the_golden_one(engine):
    """Write it anew with: python -m tests.launch.test_slurm_script"""
    assert script(replace(WANTED, engine=engine)) == GOLDEN[engine].read_text()


def test_one_recipe_is_no_array_and_what_is_not_asked_for_is_left_to_slurm():
    text = script(replace(WANTED, recipes=WANTED.recipes[:1], runs=WANTED.runs[:1], time=None, partition=None, also=()))
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert not any("array" in line or "time=" in line or "partition" in line for line in directives)
    assert '#SBATCH --output="/shared/runs/launch/slurm-%j.log"' in directives


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"log": Path("/shared/50%")}, "--run is '/shared/50%', but sbatch takes no quotes"),
        ({"runs": [Path('/a"b')], "recipes": WANTED.recipes[:1]}, "--run is"),
        ({"name": "a\n#SBATCH --uid=0"}, "the name is"),
        ({"partition": "gpu\n"}, "--partition is"),
        ({"time": "soon"}, "--time is 'soon', but must be minutes, or as in 2:30:00"),
        ({"also": ["account"]}, "--sbatch is 'account', but must be one option of sbatch"),
        ({"also": ["--account=a\nrm"]}, "--sbatch is"),
    ],
)
def test_what_sbatch_would_read_otherwise_is_refused(change, says):
    with pytest.raises(RecipeError, match=says):
        script(replace(WANTED, **change))


def ran(tmp_path, task, srun, state="RUNNING", **changes):
    """The script's output and code, with a job of that state. srun: what it does."""
    tools = tmp_path / "bin"
    tools.mkdir()
    called = tmp_path / "called"
    bodies = {
        "srun": srun,
        "squeue": f'case "$*" in *%T) echo {state};; *) echo 2026-01-01T00:00:00;; esac',
        "scancel": f'echo scancel "$@" >> {called}; kill -TERM $(cat {tmp_path}/step)',
        "scontrol": f'echo scontrol "$@" >> {called}; exit 1',
    }
    for name, body in bodies.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    runs = [tmp_path / "runs" / "tiny", tmp_path / "runs" / "a b"]
    text = script(replace(WANTED, runs=runs, folder=tmp_path, **changes))
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NODELIST": "n[1-4]",
        "SLURM_ARRAY_TASK_ID": task,
        "HOME": "/home/me",
    }
    done = subprocess.run(
        ["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr == "" or "Killed" in done.stderr
    return done.returncode, done.stdout, called.read_text() if called.exists() else ""


def test_each_word_arrives_as_it_was_given(tmp_path):
    code, _, _ = ran(tmp_path, "1", f'printf "%s\\n" "$@" > {tmp_path}/words')
    words = (tmp_path / "words").read_text().splitlines()
    assert code == 0
    assert words[words.index("/opt/my python/bin/python") :] == [
        "/opt/my python/bin/python",
        "-m",
        "samestep.cli",
        "train",
        "/shared/it's $HOME.yaml",
        "--run",
        str(tmp_path / "runs" / "a b"),
        "--engine",
        "env",
        "optimizer.clip=0.5",
        'sample.prompt="$(rm -rf ~)"',
    ]


@pytest.mark.parametrize(
    ("ends", "state", "requeued"),
    [(75, "RUNNING", True), (75, "COMPLETING", False), (75, "", False), (0, "RUNNING", False), (4, "RUNNING", False)],
)
def test_only_a_job_that_was_stopped_and_still_runs_is_queued_again(tmp_path, ends, state, requeued):
    code, out, called = ran(tmp_path, "0", f"exit {ends}", state)
    assert code == ends and f"ended with code {ends} ({state})" in out
    assert called == ("scontrol requeue 12\n" if requeued else "")


def test_a_sigterm_is_passed_on_and_the_steps_own_code_counts(tmp_path):
    step = f"echo $$ > {tmp_path}/step; trap 'sleep 0.3; exit 75' TERM; kill -TERM $PPID; while :; do sleep 0.05; done"
    code, out, called = ran(tmp_path, "0", step)
    assert code == 75 and "SIGTERM: preempted" in out
    assert called.splitlines() == ["scancel --quiet --signal=TERM 12", "scontrol requeue 12"]


def test_a_step_that_was_killed_is_told_as_such(tmp_path):
    assert ran(tmp_path, "0", "kill -KILL $$")[0] == 137


NODES = """
for word; do case "$word" in */launch/ray-*) head=$word;; esac; done
trap 'echo ended >> {0}/nodes; exit 0' USR1
[ -n "{1}" ] && echo "{1}" > "$head"
while :; do sleep 0.05; done
"""


def on_ray(tmp_path, trains, address="10.0.0.1:6379", nodes=NODES):
    """As `ran`, with a cluster whose head is there, and a samestep that does what `trains` says."""
    samestep = tmp_path / "samestep"
    samestep.write_text(f"#!/bin/bash\n{trains}\n")
    samestep.chmod(0o755)
    return ran(tmp_path, "0", nodes.format(tmp_path, address), engine="ray", command=[str(samestep)])


def test_on_ray_it_trains_beside_the_cluster_and_ends_it(tmp_path):
    said = f'printf "%s\\n" "$@" > {tmp_path}/words; echo "${{#RAY_AUTH_TOKEN}}" > {tmp_path}/token'
    code, _, called = on_ray(tmp_path, said)
    assert (code, called) == (0, "")
    assert (tmp_path / "words").read_text().splitlines() == [
        *("train", "/shared/recipes/tiny.yaml", "--run", str(tmp_path / "runs" / "tiny"), "--engine", "ray"),
        *("--address", "10.0.0.1:6379", "--resume", "run.replicas=8", "run.minimum=1"),
        *("optimizer.clip=0.5", 'sample.prompt="$(rm -rf ~)"'),
    ]
    assert (tmp_path / "token").read_text() == "64\n"
    assert (tmp_path / "nodes").read_text() == "ended\n"
    assert list((tmp_path / "runs" / "tiny" / "launch").iterdir()) == []


def test_on_ray_only_what_trains_is_asked_to_stop(tmp_path):
    trains = "trap 'sleep 0.3; exit 75' TERM; kill -TERM $PPID; while :; do sleep 0.05; done"
    code, out, called = on_ray(tmp_path, trains)
    assert code == 75 and "SIGTERM: preempted" in out and called == "scontrol requeue 12\n"
    assert (tmp_path / "nodes").read_text() == "ended\n"


def test_a_cluster_that_does_not_start_ends_the_job(tmp_path):
    code, out, called = on_ray(tmp_path, "echo trained", nodes="exit 1")
    assert (code, called) == (4, "") and "trained" not in out
    assert f"did not start; look at {tmp_path}/runs/tiny/launch/ray-12-*.log" in out


def test_a_job_that_is_preempted_while_its_cluster_starts_is_queued_again(tmp_path):
    code, out, called = on_ray(tmp_path, "echo trained", address="", nodes="kill -TERM $PPID\n" + NODES)
    assert (code, called) == (75, "scontrol requeue 12\n") and "trained" not in out


if __name__ == "__main__":
    for engine, file in GOLDEN.items():
        file.write_text(script(replace(WANTED, engine=engine)))
