"""A replica without torch that goes through the phases of steps with its peers, and hangs in step 7 if told how.

python hangs.py RANK SIZE BOARD STACK HANG SECONDS PEER_DESCRIPTOR...: SECONDS are slept in each phase.
"""

import contextlib
import fcntl
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from samestep.replica import stack
from samestep.replica.board import Board, Phase

AT = 7  # the step of the hang


def stopped():
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)


def two_locks():
    one, other = threading.Lock(), threading.Lock()
    ready = threading.Barrier(2)

    def crosswise(first, second):
        with first:
            ready.wait()
            with second:
                pass

    threading.Thread(target=crosswise, args=(other, one), daemon=True).start()
    crosswise(one, other)


def empty_pipe():
    reader, _writer = os.pipe()
    os.read(reader, 1)


def full_pipe():
    _reader, writer = os.pipe()
    os.write(writer, bytes(1 << 20))


def endless_sleep():
    time.sleep(1e6)


def endless_loop():
    while True:
        pass


def gil_in_c():
    import ctypes

    sleep = ctypes.PyDLL(None).sleep  # PyDLL does not release the GIL
    while True:
        sleep(1000)


def backtracking():
    re.match(r"(a+)+b", "a" * 64)


def file_lock():
    with tempfile.NamedTemporaryFile() as file, Path(file.name).open() as again:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(again, fcntl.LOCK_EX)


def fifo_open():
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/fifo")
        os.open(f"{folder}/fifo", os.O_RDONLY)


def condition():
    never = threading.Condition()
    with never:
        never.wait()


def silent_peer():
    ours, _theirs = socket.socketpair()
    ours.recv(1)


def endless_yields():
    def forever():
        while True:
            yield from range(1000)

    for _ in forever():
        pass


def forked_child():
    child = os.fork()
    if not child:
        time.sleep(1e6)
    os.waitpid(child, 0)


def other_program():
    subprocess.run(["sleep", "1000"], check=True)


def empty_queue():
    queue.SimpleQueue().get()


def thread_join():
    waits = threading.Thread(target=threading.Event().wait, daemon=True)
    waits.start()
    waits.join()


def empty_select():
    select.select([], [], [])


def lost_message():
    """Replica 1 misses in step 6 what all others have: they are a step further on."""


def crossed():
    """All wait in the same exchange."""


# The phase in which each hangs.
HANGS = {
    stopped: Phase.BACKWARD,
    two_locks: Phase.FORWARD,
    empty_pipe: Phase.DATA,
    full_pipe: Phase.DATA,
    endless_sleep: Phase.FORWARD,
    endless_loop: Phase.FORWARD,
    gil_in_c: Phase.BACKWARD,
    backtracking: Phase.DATA,
    file_lock: Phase.DATA,
    fifo_open: Phase.DATA,
    condition: Phase.BACKWARD,
    silent_peer: Phase.DATA,
    endless_yields: Phase.FORWARD,
    forked_child: Phase.DATA,
    other_program: Phase.DATA,
    empty_queue: Phase.DATA,
    thread_join: Phase.FORWARD,
    empty_select: Phase.BACKWARD,
}


def exchange(peers):
    for peer in peers:
        peer.send(b"x")
    for peer in peers:
        if not peer.recv(1):
            sys.exit(3)


def work(seconds):
    """Use the processor for so long."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


class Replica:
    def __init__(self, rank, board, peers):
        self.rank, self.peers = rank, peers
        self.phase = lambda step, phase: board.write(rank, step, phase)

    def hanging(self, hang, seconds):
        for step in range(1, 100):
            for phase in (Phase.DATA, Phase.FORWARD, Phase.BACKWARD):
                self.phase(step, phase)
                time.sleep(seconds)
                if step == AT and self.rank == 1 and HANGS.get(hang) == phase:
                    hang()
            self.phase(step, Phase.EXCHANGE)
            self._exchange(step, hang)
            self.phase(step, Phase.UPDATE)
            time.sleep(seconds)
            if hang is lost_message and self.rank == 1 and step == AT - 1:
                self.peers[0].recv(1), self.peers[0].recv(1), self.peers[0].recv(1)

    def _exchange(self, step, hang):
        if hang is crossed and step == AT:
            self.peers[0].recv(1)
        exchange(self.peers)

    def working(self):
        """Uneven work; a long first step; a long save of replica 0, asleep, that the others wait for."""
        work(0.02 * (1 + self.rank))  # imports
        exchange(self.peers)
        for step in range(1, 10000):
            for phase, share in ((Phase.DATA, 0), (Phase.FORWARD, 1), (Phase.BACKWARD, 2)):
                self.phase(step, phase)
                work(0.01 * share * (1 + self.rank) * (5 if step == 1 else 1))
            for phase in (Phase.EXCHANGE, Phase.UPDATE):
                self.phase(step, phase)
                exchange(self.peers)
            if step == 2 and self.rank == 0:
                self.phase(step, Phase.SAVE)
                time.sleep(6)


def main(rank, size, page, answers, hang, seconds, *peers):
    stack.register(int(answers))
    replica = Replica(int(rank), Board(int(page), int(size)), [socket.socket(fileno=int(peer)) for peer in peers])
    if hang == "none":
        replica.working()
    with contextlib.suppress(ConnectionError):  # the test ends the replicas one by one
        replica.hanging(globals()[hang], float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
