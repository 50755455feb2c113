"""A process of its own that speaks with Ray for the engine: it asks for a place for each replica, and a nurse in it.

Ray ends a process that has lost its head, prints what it likes and takes signals for itself; here that hurts nobody.
The line to the engine is JSON; while it is open the places are kept. Each is a placement group of one bundle: of a
larger one Ray moves only all lost bundles together, where a single new node may have room for some. A nurse whose node
is lost is started again by Ray wherever there is room, with no word from here.
"""

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samestep.launch.nurse import Ward, call_again
from samestep.launch.orphans import adopt, end_all

STORE = 80_000_000  # bytes of Ray's object store, which nothing is put into; Ray takes no less than 75 MB
LOOPBACK = "127.0.0.1"
LOOK = 1.0  # seconds between two looks at how many places there are


@dataclass(frozen=True)
class Wanted:
    """address: of a cluster that there is; None: a private one, with its files in `folder`. places: as many as
    replicas, at most, each of so many CPUs and GPUs. moves: whether a place whose node is lost is made up for
    elsewhere.
    """

    address: str | None
    folder: str | None
    places: int
    cpus: int
    moves: bool
    gpus: int = 0

    @property
    def place(self) -> dict[str, int]:
        """What Ray keeps for each."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    lines = line.makefile("r")
    wanted = Wanted(**json.loads(lines.readline()))
    if wanted.address:  # the engine ends it; Slurm sends SIGTERM to all, also while a checkpoint is still to be written
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with _cluster(wanted) as own:
            _say(line, "connected", own=own)
            ward = json.loads(lines.readline() or "null")
            if ward is not None:
                _keep(line, wanted, Ward(**ward | {"engine": tuple(ward["engine"])}))
    except Exception as error:
        _say(line, "failed", reason=(str(error).strip() or type(error).__name__).splitlines()[0])
        raise


@contextlib.contextmanager
def _cluster(wanted: Wanted) -> Iterator[str]:
    """The address of this node in the cluster. A private one is gone at the end, with its files."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    private = {
        "num_cpus": wanted.places * wanted.cpus,
        "object_store_memory": STORE,
        "include_dashboard": False,
        "_node_ip_address": LOOPBACK,
        "_temp_dir": wanted.folder,
    }
    try:
        adopt()
        ray.init(**quiet, **({"address": wanted.address} if wanted.address else {"address": "local"} | private))
        yield ray.util.get_node_ip_address() if wanted.address else LOOPBACK
    finally:
        ray.shutdown()
        if wanted.folder:
            end_all(os.getpid())
            shutil.rmtree(wanted.folder, ignore_errors=True)  # a log may still be written


def _keep(line: socket.socket, wanted: Wanted, ward: Ward) -> None:
    from ray.util import remove_placement_group

    kept = [_place(wanted, ward) for _ in range(wanted.places)]
    told = -1
    while not select.select([line], [], [], LOOK)[0]:  # the engine says no more; it hangs up
        there = _room(wanted)
        if there != told:
            _say(line, "room", places=there)
            told = there
    for group, _ in kept:
        remove_placement_group(group)


def _place(wanted: Wanted, ward: Ward) -> tuple[Any, Any]:
    """A placement group and the actor in it, whenever there is room."""
    import ray
    from ray.util import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([wanted.place])
    again = -1 if wanted.moves else 0
    actor = ray.remote(
        num_cpus=wanted.cpus,
        num_gpus=wanted.gpus,
        max_restarts=again,
        max_task_retries=again,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
    )(Nurse).remote()
    actor.tend.remote(ward)
    return group, actor


class Nurse:
    """The actor. Its process is the parent of a replica's; see launch/nurse.py."""

    def tend(self, ward: Ward) -> None:
        import ray

        with contextlib.suppress(PermissionError):  # Ray's workers give way to all other processes; a replica need not
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        own = ward.engine[0] == LOOPBACK
        address = LOOPBACK if own else ray.util.get_node_ip_address()
        call_again(ward, f"{address}:{os.getpid()}", address, time.sleep)


def _room(wanted: Wanted) -> int:
    """Places that the nodes of the cluster have in all, whoever has taken them."""
    import ray

    return places([node["Resources"] for node in ray.nodes() if node["Alive"]], wanted.place)


def places(nodes: Sequence[Mapping[str, float]], place: Mapping[str, int]) -> int:
    """How many there are in nodes of such resources."""
    return sum(min(int(node.get(kind, 0) // count) for kind, count in place.items()) for node in nodes)


def _say(line: socket.socket, event: str, **fields: Any) -> None:
    with contextlib.suppress(OSError):  # the engine is gone, and the line's end is seen next
        line.sendall(json.dumps({"event": event} | fields).encode() + b"\n")


if __name__ == "__main__":
    main()
