"""Processes that others start become one run: what each replica is told, and how all end together."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from samestep.errors import ClusterError, DataError
from samestep.launch.engine import Program
from samestep.launch.env import Env
from samestep.launch.started import Started
from samestep.recover.protocol import Terms
from tests.launch.test_local import FAIL, PRELUDE

pytestmark = pytest.mark.usefixtures("nothing_is_left")

JOINED = PRELUDE.replace('control.send({"event": "joined"})', "control.joined()")
FOLLOWER = """
import sys
from pathlib import Path
from samestep.launch.engine import Program
from samestep.launch.env import follow
from samestep.launch.started import Started
from samestep import errors
run, index, size, body, prepare = sys.argv[1:]
def make(work):
    return Program([sys.executable, "-c", body], work=work)
def prepared():
    exec(prepare)
    return make
try:
    follow(Started("torchrun", int(index), int(size), "job"), Path(run), 10.0, prepared)
except errors.SamestepError as error:
    print(error)
    sys.exit(error.exit_code)
"""


class Launch:
    def __init__(self, run, size, body, prepare="", missing=()):
        self.run, self.size, self.body, self.events = run, size, JOINED + body, []
        words = [sys.executable, "-c", FOLLOWER, str(run)]
        self.others = [
            subprocess.Popen([*words, str(i), str(size), self.body, prepare], stdout=subprocess.PIPE, text=True)
            for i in range(1, size)
            if i not in missing
        ]

    def lead(self, patience=20.0, hears=lambda event: None, **changes):
        program = Program([sys.executable, "-c", self.body], work={"word": "hello"}, logs=self.run / "logs", **changes)
        with Env(Started("torchrun", 0, self.size, "job"), self.run, patience) as engine:
            self.engine = engine
            engine.run(program, Terms(self.size, 8), lambda event: (self.events.append(event), hears(event)))

    def ends(self):
        """Code and last words of each other process."""
        said = [other.communicate(timeout=30)[0].strip() for other in self.others]
        return [(other.returncode, words) for other, words in zip(self.others, said, strict=True)]

    def close(self):
        for other in self.others:
            other.kill()
            other.communicate()


@pytest.fixture
def launch(tmp_path):
    made = []

    def start(*arguments, **changes):
        made.append(Launch(tmp_path / "run", *arguments, **changes))
        return made[-1]

    yield start
    for one in made:
        one.close()


def told(launched, name):
    return sorted((e for e in launched.events if e["event"] == name), key=lambda e: e["rank"])


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("size", [1, 3])
def test_each_replica_gets_its_place_and_where_the_others_are_called(launch, size):
    body = """
control.send({'event': 'x', 'work': formation.work, 'far': sorted(formation.addresses), 'token': formation.token,
              'members': formation.members, 'hosts': formation.hosts})
"""
    launched = launch(size, body)
    launched.lead()
    found = told(launched, "x")
    assert [e["rank"] for e in found] == list(range(size))
    assert [e["far"] for e in found] == [[i for i in range(size) if i != me] for me in range(size)]
    assert all(e["work"] == {"word": "hello"} and e["members"] == list(range(size)) for e in found)
    assert len({e["token"] for e in found}) == 1
    assert launched.ends() == [(0, "")] * (size - 1)
    assert not list(launched.run.glob("launch/*.json"))


def test_the_first_cause_ends_all_with_one_line_and_its_code(launch):
    body = "if rank == 2:\n" + "    " + FAIL.format("raise DataError('row 7 is no row')").replace("\n", "\n    ")
    launched = launch(3, body + "\ntime.sleep(60)")
    began = time.monotonic()
    with pytest.raises(DataError, match=r"^row 7 is no row \(replica 2 on \S+, at the start\)$"):
        launched.lead()
    assert time.monotonic() - began < 20
    ends = launched.ends()
    assert [code for code, _ in ends] == [3, 3]
    assert all(words.startswith("row 7 is no row") for _, words in ends)


def test_one_that_lost_its_peer_is_not_taken_for_the_cause(launch):
    body = """
if rank == 1:
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
control.failed(PeerLost("lost"))
sys.exit(4)
"""
    launched = launch(3, body)
    with pytest.raises(ClusterError, match=r"a replica was killed by SIGKILL \(replica 1 on .*logs/replica-1.log"):
        launched.lead()
    assert [code for code, _ in launched.ends()] == [4, 4]


def test_a_process_that_is_killed_takes_its_replica_with_it_and_all_others(launch):
    launched = launch(3, "control.send({'event': 'x', 'pid': os.getpid()})\ntime.sleep(60)")
    pids = []

    def hears(event):
        if event["event"] == "x":
            pids.append(event["pid"])
        if len(pids) == 3:
            launched.others[1].kill()

    with pytest.raises(ClusterError, match="a replica ended without a word, or its host did"):
        launched.lead(hears=hears)
    assert [code for code, _ in launched.ends()] == [4, -9]
    deadline = time.monotonic() + 5
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, pids))


def test_those_that_lost_process_0_end(launch, tmp_path):
    launched = launch(2, "time.sleep(60)")
    leader = (
        "import sys; from pathlib import Path; from samestep.launch.env import Env; "
        "from samestep.launch.engine import Program; from samestep.launch.started import Started; "
        "from samestep.recover.protocol import Terms; import os\n"
        "with Env(Started('torchrun', 0, 2, 'job'), Path(sys.argv[1]), 9.0) as e:\n"
        "    e.run(Program([sys.executable, '-c', sys.argv[2]]), Terms(2, 8), lambda event: os.kill(os.getpid(), 9))"
    )
    subprocess.run([sys.executable, "-c", leader, str(tmp_path / "run"), launched.body], check=False)
    ((code, words),) = launched.ends()
    assert code == 4 and "process 0, which leads the run, is gone" in words


def test_a_stop_asked_of_any_process_is_one_for_all(launch):
    asked = []
    before = signal.signal(signal.SIGTERM, lambda *_: (asked.append(True), launched.engine.stop()))
    body = "control.send({'event': 'x'})\nwhile not control.wish(1):\n    time.sleep(0.05)"
    launched = launch(2, body)
    try:
        launched.lead(hears=lambda event: event["event"] == "x" and launched.others[0].send_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked
    assert launched.ends() == [(0, "")]


def test_what_another_process_cannot_prepare_ends_all(launch):
    launched = launch(2, "time.sleep(60)", prepare="raise errors.DataError('no such file on this host')")
    with pytest.raises(DataError, match=r"no such file on this host \(replica 1 on"):
        launched.lead()
    assert launched.ends() == [(3, "no such file on this host")]


def test_one_that_never_comes_is_named_and_the_others_end_with_the_same_line(launch):
    launched = launch(3, "time.sleep(60)", missing=(2,))
    with pytest.raises(ClusterError, match="but process 2 did not come within 3 s"):
        launched.lead(patience=3.0)
    ((code, words),) = launched.ends()
    assert code == 4 and "process 2 did not come" in words and words.endswith("(told by process 0)")


def test_one_that_hangs_ends_the_run(launch):
    body = """
control.phase(1, Phase.FORWARD)
control.send({'event': 'x'})
if rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
"""
    launched = launch(2, body)
    with pytest.raises(ClusterError, match=r"replica 1 .*stopped"):
        launched.lead()
    assert [e["replica"] for e in launched.events if e["event"] == "silent"][-1] == 1


def test_another_version_of_samestep_is_refused(launch):
    prepare = "import samestep.launch.agent as agent; agent.__version__ = '0.0.1'"
    launched = launch(2, "time.sleep(60)", prepare=prepare)
    with pytest.raises(ClusterError, match=r"process 1 on \S+ has samestep 0\.0\.1, and process 0"):
        launched.lead()
    assert [code for code, _ in launched.ends()] == [4]
