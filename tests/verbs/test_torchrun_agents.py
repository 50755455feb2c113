"""torchrun with two agents of which one goes away: another number of processes, and the same model."""

import contextlib
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
SOON = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"

pytestmark = pytest.mark.slow


class Agents:
    """By name; the first keeps the store at which they meet. Each starts one process."""

    def __init__(self, folder, cache):
        self.run, self.folder, self.cache, self.agents = folder / "run", folder, cache, {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.endpoint = f"127.0.0.1:{free.getsockname()[1]}"

    def start(self, name, *overrides):
        host = str(not self.agents).lower()
        words = ["-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"]
        words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", self.endpoint, "--rdzv-id", "job"]
        words += ["--rdzv-conf", f"is_host={host},{SOON}", "-m", "--", "samestep.cli", "train", str(TINY)]
        words += ["--run", str(self.run), "--engine", "env", f"run.cache={self.cache}", *EACH, *overrides]
        with (self.folder / f"{name}.log").open("w") as log:
            self.agents[name] = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)

    def at(self, test, seconds=200):
        deadline = time.monotonic() + seconds
        while not test(self.events):
            assert time.monotonic() < deadline, self.says()
            time.sleep(0.02)

    def kill(self, name):
        """As if its host's power were cut: the agent and all that it has started."""
        agent = psutil.Process(self.agents[name].pid)
        for process in [agent, *agent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.agents[name].wait()

    @property
    def events(self):
        path = self.run / "journal.jsonl"
        return journal.read(path) if path.exists() else []

    @property
    def sizes(self):
        return [event["replicas"] for event in self.events if event["event"] == "formed"]

    def says(self):
        return "\n".join(f"{path.name}: {path.read_text()}" for path in self.folder.glob("*.log"))

    def close(self):
        for name in self.agents:
            if self.agents[name].poll() is None:
                self.kill(name)


@pytest.fixture
def agents(tmp_path, cache):
    before = set(psutil.Process().children(recursive=True))
    made = Agents(tmp_path, cache)
    yield made
    made.close()
    assert set(psutil.Process().children(recursive=True)) <= before


def step(number):
    return lambda events: any(event["event"] == "step" and event["step"] >= number for event in events)


@pytest.mark.parametrize("leaves", ["first", "second"])
def test_without_one_agent_the_other_goes_on_with_fewer_processes(agents, leaves):
    """Process 0 is with one of them; with the store of the first the second cannot meet anybody, and ends."""
    agents.start("first")
    agents.start("second")
    agents.at(step(3))
    agents.kill(leaves)
    if leaves == "first":
        assert agents.agents["second"].wait(120) != 0
        agents.agents.clear()
        agents.start("first")
    (name,) = [name for name in agents.agents if name != leaves] or ["first"]
    assert agents.agents[name].wait(200) == 0, agents.says()
    assert agents.sizes == [2, 1]
    assert [event["digest"] for event in agents.events if event["event"] == "finished"] == [DIGEST]
    assert clean(audit(agents.run, lambda line: None))
