"""A node of a Ray cluster inside a Slurm job, with a small program in the place of Ray."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.usefixtures("nothing_is_left")

NODE = "import sys; from samestep.launch import raynode; raynode.START, raynode.PAUSE = ({!r},), 0.1; raynode.main()"


class Node:
    """body: what stands for `ray start`; it may start a raylet, which is a process of that name."""

    def __init__(self, folder, body, number="0"):
        self.folder, self.file = folder, folder / "head"
        (folder / "files").mkdir(exist_ok=True)
        raylet = folder / "raylet"
        if not raylet.exists():
            shutil.copy("/bin/sleep", raylet)
        ray = folder / f"ray-{number}"
        ray.write_text(f'#!/bin/bash\necho "$@" >> {folder}/starts\nraylet() {{ {raylet} 60 & sleep 0.3; }}\n{body}\n')
        ray.chmod(0o755)
        words = [sys.executable, "-c", NODE.format(str(ray)), str(self.file), "3", str(folder / "files")]
        known = {"SLURM_NODEID": number, "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
        self.process = subprocess.Popen(words, env=os.environ | known, stderr=subprocess.PIPE, text=True)

    def starts(self):
        path = self.folder / "starts"
        return path.read_text().splitlines() if path.exists() else []

    def raylets(self):
        return [p for p in psutil.Process(self.process.pid).children(recursive=True) if p.name() == "raylet"]

    def ended(self, number=None):
        if number:
            self.process.send_signal(number)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err.strip()


@pytest.fixture
def start(tmp_path):
    made = []

    def node(body, number="0"):
        made.append(Node(tmp_path, body, number))
        return made[-1]

    yield node
    for one in made:
        if one.process.poll() is None:
            one.ended(signal.SIGUSR1)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_head_says_where_it_is_once_it_is_there_and_stays_until_it_is_told_to_end(start, tmp_path):
    node = start("sleep 0.3; raylet")
    until(node.file.exists)
    (start,), host = node.starts(), node.file.read_text()
    assert start.startswith("--head --num-cpus=3 ") and f"--port={host.removeprefix('127.0.0.1:')} " in start
    assert len(node.raylets()) == 1
    for process in (node.process, *node.raylets()):
        process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert len(node.raylets()) == 1
    assert node.ended(signal.SIGUSR1) == (0, "")
    assert not (tmp_path / "files").exists()


def test_a_start_that_fails_is_tried_again_and_leaves_nothing(start, tmp_path):
    node = start(f"raylet\n[ $(wc -l < {tmp_path}/starts) -ge 3 ]")
    until(node.file.exists)
    assert len(node.starts()) == 3 and len(node.raylets()) == 1
    assert node.ended(signal.SIGUSR1)[0] == 0


def test_with_its_raylet_the_head_is_lost(start, tmp_path):
    node = start("raylet")
    until(node.file.exists)
    node.raylets()[0].kill()
    assert node.ended() == (1, "the head of the Ray cluster has ended")


def test_another_node_waits_for_the_head_and_starts_a_raylet_that_ends_again(start, tmp_path):
    node = start("raylet", number="1")
    time.sleep(0.3)
    assert node.starts() == []
    node.file.write_text("10.0.0.1:6379")
    until(lambda: node.raylets())
    node.raylets()[0].kill()
    until(lambda: len(node.starts()) == 2 and node.raylets())
    assert [start.split()[-1] for start in node.starts()] == ["--address=10.0.0.1:6379"] * 2
    assert node.ended(signal.SIGUSR1)[0] == 0
