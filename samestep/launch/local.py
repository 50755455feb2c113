"""The local engine: one process a replica, on this host or on hosts that share its kernel, started and watched by this
one.

Replicas of one host are connected by socket pairs made here, so no port is opened and nothing has a name that could be
left behind; those of different hosts are told where to call each other (wire/meeting.py). The end of a process is
learnt from its pidfd, at once, whatever the others wait for. What follows is decided in launch/company.py.
"""

import contextlib
import os
import selectors
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from samestep.launch.child import Child, Near, spawn
from samestep.launch.company import Company, Heard, slots
from samestep.launch.engine import OnEvent, Program
from samestep.launch.hosts import Address, choose, sharers
from samestep.launch.manners import scheduled
from samestep.recover.protocol import Terms
from samestep.replica import board, stack
from samestep.replica.board import Board
from samestep.replica.place import Place


class Local:
    def __init__(self) -> None:
        self._company: Company | None = None

    def stop(self) -> None:
        """Callable from a signal handler."""
        if self._company is not None:
            self._company.stop()

    def run(self, program: Program, terms: Terms, on_event: OnEvent) -> None:
        with contextlib.ExitStack() as stack:
            here = stack.enter_context(contextlib.closing(_Here(program, slots(terms))))
            company = self._company = Company(here, here.board, program, terms, on_event)
            stack.callback(company.close)
            stack.callback(self._forget)
            company.run()

    def _forget(self) -> None:
        self._company = None


class _Here:
    """This machine, for the replicas of one run."""

    def __init__(self, program: Program, size: int) -> None:
        self._program, self._size = program, size
        self._usual = os.sched_getscheduler(0)  # the policy of replicas
        self._selector = selectors.DefaultSelector()
        self._page, self._meeting = board.create(size), os.memfd_create("samestep-meeting")
        self.board = Board(self._page, size)

    def close(self) -> None:
        self._selector.close()
        self.board.close()
        os.close(self._page)
        os.close(self._meeting)

    def start(self, replica: int, slot: int, hosts: Sequence[str], avoided: Collection[str]) -> Near:
        program = self._program
        host = choose(program.hosts, hosts, avoided)
        place = Place(
            replica,
            slot,
            self._size,
            program.transport,
            self._page,
            self._meeting,
            stack.create(),
            os.getpid(),
            program.work,
            host.name,
            host.address,
            slot,
        )
        with scheduled(self._usual):
            child = spawn(program, place, host.start)
        self._selector.register(child.line, selectors.EVENT_READ, child)
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)
        return child

    def hear(self, seconds: float) -> Iterator[Heard]:
        for key, _ in self._selector.select(seconds):
            child, ended = key.data, key.fileobj == key.data.pidfd
            if child.closed:  # it was buried just now
                continue
            told = child.told()
            if told is None:
                self._deaf(child)
            if ended:
                self._selector.unregister(child.pidfd)
            yield Heard(child, told or [], ended)

    def form(self, told: Mapping[int, dict[str, Any]], children: Mapping[int, Child]) -> None:
        hosts = next(iter(told.values()))["hosts"]
        sharing = sharers(hosts) if self._program.transport == "shared memory" else []
        places = {replica: fields["addresses"] for replica, fields in told.items()}
        with contextlib.ExitStack() as stack:
            columns = [
                (stack.enter_context(_pairs(places)), stack.enter_context(_shared(sharing)))
                for _ in range(self._program.shards)
            ]
            for (replica, fields), host in zip(told.items(), hosts, strict=True):
                if replica in children:
                    ends = [[end.fileno() for end in pairs[replica].values()] for pairs, _ in columns]
                    given = [[*near, *memory.get(host, [])] for near, (_, memory) in zip(ends, columns, strict=True)]
                    children[replica].form(fields, [descriptor for each in given for descriptor in each])

    def wishes(self) -> None:
        """All see the board."""

    def bury(self, child: Child) -> None:
        assert isinstance(child, Near)
        self._deaf(child)
        if child.pidfd in self._selector.get_map():
            self._selector.unregister(child.pidfd)
        child.close()

    def _deaf(self, child: Near) -> None:
        if child.line.fileno() in self._selector.get_map():
            self._selector.unregister(child.line)


@contextlib.contextmanager
def _pairs(addresses: Mapping[int, Sequence[Address | None]]) -> Iterator[dict[int, dict[int, socket.socket]]]:
    """The connected sockets of each two that have no address for each other, by member and peer, each in the order of
    `addresses`, the members; closed here once their owners have them.
    """
    ends: dict[int, dict[int, socket.socket]] = {replica: {} for replica in addresses}
    with contextlib.ExitStack() as stack:
        for (left, _), (right, places) in combinations(addresses.items(), 2):
            if places[list(addresses).index(left)] is None:
                one, other = socket.socketpair()
                ends[left][right], ends[right][left] = stack.enter_context(one), stack.enter_context(other)
        yield ends


@contextlib.contextmanager
def _shared(hosts: Sequence[int]) -> Iterator[dict[int, list[int]]]:
    """By host the file of which each member of a generation there fills a part. It has no name."""
    with contextlib.ExitStack() as stack:
        files = {}
        for host in hosts:
            files[host] = [os.memfd_create("samestep-wire")]
            stack.callback(os.close, *files[host])
        yield files
