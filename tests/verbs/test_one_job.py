"""One run folder and several commands: a second job is refused, whatever its engine; a later one goes on with it."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from samestep.recover import journal
from samestep.verbs.audit import audit, clean
from tests.conftest import TINY

DIGEST = "sha256:9392cdfa46477d8ffb131a603a1721220c1416d56bccd1dca77a376b639d1c2a"
EACH = ["recover.checkpoint_every=1", "run.log_every=1"]
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
LONG = [*EACH, "steps=3000"]

pytestmark = pytest.mark.slow


class Jobs:
    """Commands of samestep, with the folder `run` and a cache."""

    def __init__(self, folder, cache):
        self.run, self.cache, self.processes = folder / "run", cache, []

    def start(self, *words, **environment):
        words = [sys.executable, "-P", "-m", "samestep.cli", *map(str, words), f"run.cache={self.cache}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.processes.append(subprocess.Popen(words, env=os.environ | environment, cwd=self.run.parent, **pipes))
        return self.processes[-1]

    def train(self, *words, **environment):
        return self.start("train", TINY, "--run", self.run, *words, **environment)

    @property
    def events(self):
        return journal.read(self.run / "journal.jsonl") if (self.run / "journal.jsonl").exists() else []

    def at(self, step, process):
        deadline = time.monotonic() + 500
        while not any(event["event"] == "step" and event["step"] >= step for event in self.events):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        code, says = ended(process)
        assert code == 75, says

    def close(self):
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def jobs(tmp_path, cache):
    before = set(psutil.Process().children(recursive=True))
    made = Jobs(tmp_path, cache)
    yield made
    made.close()
    assert set(psutil.Process().children(recursive=True)) <= before


def ended(process):
    _, err = process.communicate(timeout=500)
    return process.returncode, err


def finished(jobs, process):
    assert ended(process)[0] == 0
    assert [event["digest"] for event in jobs.events if event["event"] == "finished"] == [DIGEST]
    assert clean(audit(jobs.run, lambda line: None))


def test_a_second_job_is_refused_whatever_its_engine_and_the_first_goes_on(jobs, tmp_path):
    first = jobs.at(2, jobs.train("--replicas", 2, *LONG))
    seconds = [
        ended(jobs.train(*LONG)),
        ended(jobs.train("--resume", *LONG)),
        ended(jobs.start("resume", jobs.run)),
        ended(jobs.train("--engine", "env", *LONG, **ALONE)),
        ended(jobs.start("resume", jobs.run, "--engine", "env", **ALONE)),
    ]
    by = f"{jobs.run} is being trained by another job (samestep train on {socket.gethostname()}, process {first.pid})"
    for code, says in seconds:
        (line,) = says.splitlines()
        assert code == 4 and line.startswith(f"error: {by}; end that job first, or give another --run")
    jobs.at(jobs.events[-1].get("step", 2) + 2, first)
    jobs.stop(first)
    assert not (jobs.run / "lock").exists()


def test_one_that_env_has_is_refused_to_others(jobs):
    first = jobs.at(2, jobs.train("--engine", "env", *LONG, **ALONE))
    code, says = ended(jobs.start("resume", jobs.run))
    assert code == 4 and f"another job (RANK on {socket.gethostname()}, process {first.pid})" in says
    jobs.stop(first)


def test_after_a_kill_nobody_is_locked_out(jobs):
    first = jobs.at(3, jobs.train("--replicas", 2, *EACH, "data.context=64"))
    first.kill()
    first.wait()
    assert (jobs.run / "lock").exists()
    finished(jobs, jobs.start("resume", jobs.run))


def test_a_run_that_began_here_goes_on_where_others_start_the_processes_and_comes_back(jobs):
    jobs.stop(jobs.at(2, jobs.train("--replicas", 2, *EACH)))
    two = [
        jobs.start("resume", jobs.run, "--engine", "env", **ALONE | {"RANK": rank, "WORLD_SIZE": "2"}) for rank in "01"
    ]
    jobs.at(6, two[0])
    two[1].send_signal(signal.SIGTERM)
    assert [ended(process)[0] for process in two] == [75, 75]
    finished(jobs, jobs.start("resume", jobs.run, "--replicas", 3))
    assert [event["replicas"] for event in jobs.events if event["event"] == "formed"] == [2, 2, 3]
    assert ended(jobs.start("resume", jobs.run, "--engine", "env", **ALONE))[0] == 0  # a launcher's restart
    assert ended(jobs.start("resume", jobs.run))[0] == 2


def test_one_command_begins_a_run_goes_on_with_it_and_is_content_with_its_end(jobs):
    words = ["--resume", *EACH]
    jobs.stop(jobs.at(3, jobs.train(*words)))
    finished(jobs, jobs.train(*words))
    before = jobs.run.joinpath("journal.jsonl").read_bytes()
    code, says = ended(jobs.train(*words))
    assert code == 0 and "has ended already" in says
    code, says = ended(jobs.train(*words, "seed=2"))
    assert code == 2 and "holds a run with another seed" in says
    assert jobs.run.joinpath("journal.jsonl").read_bytes() == before


def test_two_at_once_without_a_folder_get_one_each(jobs, tmp_path):
    both = [jobs.start("train", TINY, "steps=1") for _ in range(2)]
    assert [ended(process)[0] for process in both] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny-1", "tiny-2"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["train", TINY, "--resume"], 2, "--resume needs --run DIR"),
        (["train", TINY, "--run", "file"], 2, "file is no folder; choose another one with --run"),
        (["resume", "nowhere"], 3, "nowhere"),
        (["train", TINY, "--run", "new", "model.width=7"], 2, "width 7 does not split"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_no_folder(jobs, tmp_path, words, code, says):
    (tmp_path / "file").write_text("")
    found = ended(jobs.start(*words))
    assert found[0] == code and says in found[1] and found[1].count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
