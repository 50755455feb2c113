"""samestep train --engine env, as torchrun and others call it: one run, one digest, and one line where it cannot be."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from samestep.recover import journal
from samestep.verbs.audit import audit, clean
from samestep.verbs.launched import differs
from tests.conftest import TINY

DIGEST = "sha256:9392cdfa46477d8ffb131a603a1721220c1416d56bccd1dca77a376b639d1c2a"
EACH = ["recover.checkpoint_every=1", "run.log_every=1"]
CLI = [sys.executable, "-P", "-m", "samestep.cli"]


class Launch:
    """So many processes, told of each other as launchers do."""

    def __init__(self, run, size, cache, *overrides, recipe=TINY, of=None, indices=None, port=29511):
        words = [*CLI, "train", str(recipe), "--run", str(run), "--engine", "env", f"run.cache={cache}", *overrides]
        known = {"WORLD_SIZE": str(of or size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        known |= {"SAMESTEP_PATIENCE": "60"}
        self.run, self.processes = run, []
        for index in range(size) if indices is None else indices:
            environment = os.environ | known | {"RANK": str(index)}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(words, env=environment, **pipes))

    def at(self, step):
        """Wait until it is committed."""
        deadline = time.monotonic() + 600  # machines may be busy
        while not any(event.get("step", 0) >= step for event in self.events if event["event"] == "step"):
            assert time.monotonic() < deadline, self.end()
            time.sleep(0.05)
        return self

    @property
    def events(self):
        return journal.read(self.run / "journal.jsonl") if (self.run / "journal.jsonl").exists() else []

    def end(self):
        """Code and errors of each."""
        said = [process.communicate(timeout=150) for process in self.processes]
        return [(process.returncode, err) for process, (_, err) in zip(self.processes, said, strict=True)]

    def close(self):
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def launch(tmp_path, cache):
    made = []
    before = set(psutil.Process().children(recursive=True))

    def start(size, *overrides, **changes):
        made.append(Launch(changes.pop("run", tmp_path / "run"), size, cache, *overrides, **changes))
        return made[-1]

    yield start
    for one in made:
        one.close()
    assert set(psutil.Process().children(recursive=True)) <= before


def same(run):
    told = journal.read(run / "journal.jsonl")
    assert [event["digest"] for event in told if event["event"] == "finished"] == [DIGEST]
    assert clean(audit(run, lambda line: None))


def resumed(run):
    return [event["step"] for event in journal.read(run / "journal.jsonl") if event["event"] == "resumed"]


@pytest.mark.slow
def test_a_run_that_lost_a_process_goes_on_with_another_number_of_them(launch, tmp_path):
    first = launch(2, *EACH).at(4)
    first.processes[1].kill()
    (code, says), _ = first.end()
    assert code == 4 and "a replica ended without a word, or its host did (replica 1 on" in says.splitlines()[-1]
    second = launch(3, *EACH).at(6)
    second.processes[0].kill()
    assert [code for code, _ in second.end()] == [-9, 4, 4]
    assert launch(1, *EACH).end()[0][0] == 0
    assert len(resumed(tmp_path / "run")) == 2 and resumed(tmp_path / "run")[0] >= 3
    same(tmp_path / "run")


@pytest.mark.slow
def test_sigterm_to_any_process_stops_all_with_a_checkpoint_and_75(launch, tmp_path):
    stopped = launch(2, *EACH).at(3)
    stopped.processes[1].send_signal(signal.SIGTERM)
    ends = stopped.end()
    assert [code for code, _ in ends] == [75, 75]
    assert all("with a checkpoint of step" in says.splitlines()[-1] for _, says in ends)
    assert [code for code, _ in launch(2, *EACH).end()] == [0, 0]
    assert resumed(tmp_path / "run")[0] >= 3
    same(tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_has_ended_is_no_error_for_a_launcher_that_starts_it_again(launch, tmp_path):
    assert launch(1, "steps=1").end()[0][0] == 0
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    ends = launch(2, "steps=1").end()
    assert [code for code, _ in ends] == [0, 0] and "has ended already" in ends[0][1]
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before
    code, says = launch(1, "steps=2").end()[0]
    assert code == 2 and "holds a run with another steps; choose another folder" in says


@pytest.mark.slow
def test_a_second_job_with_the_same_folder_is_refused_and_the_first_goes_on(launch, tmp_path):
    endless = [*EACH, "steps=100000"]
    first = launch(1, *endless).at(1)
    ends = launch(2, *endless, port=29512).end()
    assert [code for code, _ in ends] == [4, 4]
    assert all("is being trained by another job (RANK on" in says for _, says in ends)
    first.processes[0].send_signal(signal.SIGTERM)
    assert first.end()[0][0] == 75


def test_more_processes_than_can_share_a_step_are_refused(launch, tmp_path):
    ends = launch(2, of=9, indices=[0, 8]).end()
    assert [code for code, _ in ends] == [4, 4]
    assert all("RANK starts 9 processes, but at most 8 can share a step" in says for _, says in ends)
    assert all(says.count("\n") == 1 for _, says in ends)


@pytest.mark.slow
def test_processes_with_other_recipes_or_data_are_refused(launch, tmp_path):
    other = Launch(tmp_path / "run", 2, tmp_path / "cache", "optimizer.clip=0.7", indices=[1])
    ends = [*launch(2, indices=[0]).end(), *other.end()]
    assert [code for code, _ in ends] == [4, 4]
    assert all("optimizer.clip of the recipe is not what process 0 has" in says for _, says in ends)


@pytest.mark.parametrize(
    ("known", "words", "code", "says"),
    [
        ({}, ["--run", "run"], 4, "nothing says which process of how many this is"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, [], 2, "--engine env needs --run DIR"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "192.0.2.7"}, ["--run", "run"], 4, "nobody can listen"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ["--run", "run", "sync.strategy=fast"], 4, "is for --engine local"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, known, words, code, says):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK"))}
    command = [*CLI, "train", str(TINY), "--engine", "env", *words]
    done = subprocess.run(command, env=clean | known, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code and says in done.stderr and done.stderr.count("\n") == 1


def torchrun(run, cache, size, *more):
    words = ["-m", "torch.distributed.run", "--nproc-per-node", str(size), "--standalone", *more, "-m", "--"]
    words += ["samestep.cli", "train", str(TINY), "--run", str(run), "--engine", "env", f"run.cache={cache}", *EACH]
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_torchrun_on_any_number_of_processes_gives_the_same_model(tmp_path, cache, size):
    done = torchrun(tmp_path / "run", cache, size)
    _, says = done.communicate(timeout=200)
    assert done.returncode == 0, says
    same(tmp_path / "run")


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed_and_the_model_is_the_same(tmp_path, cache):
    run = tmp_path / "run"
    done = torchrun(run, cache, 2, "--max-restarts", "1")
    Launch(run, 0, cache).at(3)
    workers = [p for p in psutil.Process(done.pid).children() if "samestep.cli" in p.cmdline()]
    workers[-1].kill()
    _, says = done.communicate(timeout=200)
    assert done.returncode == 0, says
    assert len(resumed(run)) == 1 and resumed(run)[0] >= 2
    same(run)


def test_the_first_difference_is_named_with_its_section_and_machines_do_not_count():
    left = {"seed": 1, "run": {"replicas": 1}, "optimizer": {"clip": 1.0, "kind": "adamw"}}
    assert differs(left, left | {"run": {"replicas": 2}}) is None
    assert differs(left, left | {"optimizer": {"clip": 2.0, "kind": "adamw"}}) == "optimizer.clip"
    assert differs(left, left | {"seed": 2, "model": None}) == "seed"
    assert differs(left, left | {"optimizer": None}) == "optimizer"
