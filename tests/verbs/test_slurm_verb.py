"""samestep slurm: what is submitted, and what is refused before."""

import importlib.util

import pytest

from samestep.errors import ClusterError
from samestep.verbs.slurm import slurm
from tests.conftest import TINY


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An sbatch that takes everything, or says why not."""

    def make(body):
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "sbatch").write_text(f"#!/bin/bash\n{body}\n")
        (tools / "sbatch").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

    return make


def submitted(words, run, nodes=2, per_node=1, dry_run=False):
    return slurm([*map(str, words)], nodes, per_node, None, None, run, [], dry_run)


def test_a_dry_run_prints_the_script_and_leaves_nothing(samestep, tmp_path):
    done = samestep("slurm", TINY, "--nodes", 2, "--dry-run", "--run", "there")
    assert done.code == 0 and done.out.startswith("#!/bin/bash\n#SBATCH --job-name=samestep-tiny\n")
    assert f"recipes=({TINY})" in done.out and f"runs=({tmp_path}/there)" in done.out
    assert not (tmp_path / "there").exists()


def test_what_is_submitted_lies_in_the_run_folder(fake, tmp_path):
    fake('echo "4711;cluster"')
    done = submitted([TINY, "steps=3"], tmp_path / "run")
    assert done.job == 4711
    assert (tmp_path / "run" / "launch" / "job.sh").read_text() == done.text
    assert "--engine env steps=3" in done.text


def test_several_recipes_have_a_folder_each(fake, tmp_path):
    fake("echo 1")
    other = tmp_path / "other.yaml"
    other.write_text(TINY.read_text())
    done = submitted([TINY, other], tmp_path / "all")
    assert done.runs == [str(tmp_path / "all" / "tiny"), str(tmp_path / "all" / "other")]
    assert "#SBATCH --array=0-1\n" in done.text


def test_without_ray_no_job_for_it_waits_in_a_queue(fake, tmp_path, monkeypatch):
    fake("echo 1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match="needs Ray, which is not installed"):
        slurm([str(TINY)], 2, 1, None, None, tmp_path / "run", [], False, "ray")


def test_a_job_with_a_cluster_is_submitted(fake, tmp_path, monkeypatch):
    fake("echo 1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    text = slurm([str(TINY)], 2, 3, None, None, tmp_path / "run", [], False, "ray").text
    assert "--engine ray" in text and "run.replicas=6" in text and "#SBATCH --no-kill\n" in text


def refused(samestep, *words):
    done = samestep("slurm", *words)
    assert done.err.count("\n") == 1
    return done.code, done.err


def test_where_no_slurm_is_the_fix_is_named(samestep, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    code, says = refused(samestep, TINY, "--run", "run")
    assert code == 4 and "sbatch, which is not here; call it on a host of Slurm, or add --dry-run" in says
    assert not (tmp_path / "run").exists()


def test_what_sbatch_says_is_shown(samestep, fake):
    fake("echo 'sbatch: error: invalid partition' >&2; exit 1")
    code, says = refused(samestep, TINY)
    assert code == 4 and says.endswith("job.sh: sbatch: error: invalid partition\n")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([TINY, "--nodes", 3, "--replicas-per-node", 3], 4, "starts 9 processes, but at most 8 can share a step"),
        ([TINY, "sync.strategy=auto"], 4, "sync.strategy auto is for --engine local"),
        ([TINY, TINY], 2, "several recipes have the same file name"),
        (["steps=3"], 2, "was given no recipe"),
        ([TINY, "--time", "soon"], 2, "--time is 'soon'"),
        (["nowhere.yaml"], 2, "nowhere.yaml"),
        ([TINY, "--engine", "local"], 2, "--engine is 'local', but must be one of env, ray under Slurm"),
    ],
)
def test_what_cannot_run_is_refused_before_it_waits_in_a_queue(samestep, fake, words, code, says):
    fake("echo 1")
    found = refused(samestep, *words)
    assert found[0] == code and says in found[1]
