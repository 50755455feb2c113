"""Seconds of an all-reduce of float32 between the replicas of one host: gloo, samestep's sockets, its shared memory.

    python benchmarks/exchange.py [--rounds 5] > exchange.json

What is timed, call by call on replica 0, all replicas calling at once, one thread each:

    gloo        torch.distributed.all_reduce of a tensor, in place
    sockets     a reduce-scatter and a gather as `sync/exact.py` makes them: each replica gets the others' part of what
                it owns, adds it to its own, and sends the sum to all others. Afterwards every replica has the whole sum
                in its own tensor, as with gloo
    shared      the same over shared memory: parts are read where they lie, and the sums are copied from their owners
    shared_left the same, but the sums stay where their owners have them: every replica can read the whole sum, part by
                part, in the memory of its owner

Tensors are made once by the transport's `memory` (ordinary tensors for gloo). One round starts the replicas of each
transport once, by samestep's engine, in a new order each time, and times all sizes there; machines drift, so compare
the ratios of one round. A figure is the median of the calls of one round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODES = ("gloo", "sockets", "shared")
SIZES = (1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 10 << 20, 40 << 20, 160 << 20)  # bytes
MOVED = 400 << 20  # bytes of tensors a size and round, within the limits of calls
CALLS = (5, 200)


def main() -> None:
    arguments = parse()
    if arguments.mode:
        replica(arguments.mode, arguments.replicas[0])
        return
    rounds = []
    for number in range(arguments.rounds):
        order = MODES[number % len(MODES) :] + MODES[: number % len(MODES)]
        for replicas in arguments.replicas:
            found = {name: times for mode in order for name, times in measure(mode, replicas).items()}
            rounds.append({"replicas": replicas, "microseconds": found})
            print(json.dumps(rounds[-1]), file=sys.stderr)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    medians = {str(replicas): report(rounds, replicas) for replicas in arguments.replicas}
    print(json.dumps({"machine": machine, "replicas": medians, "rounds": rounds}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--replicas", type=int, nargs="+", default=(2, 4))
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(mode: str, replicas: int) -> dict:
    command = [sys.executable, __file__, "--mode", mode, "--replicas", str(replicas)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def report(rounds: list, replicas: int) -> dict:
    """By size: medians over the rounds in microseconds, and of the ratios within each round."""
    found = [each["microseconds"] for each in rounds if each["replicas"] == replicas]
    names = sorted(found[0])

    def over(below: str, size: str) -> float:
        return round(statistics.median(each["gloo"][size] / each[below][size] for each in found), 2)

    return {
        size: {name: round(statistics.median(each[name][size] for each in found), 1) for name in names}
        | {f"{name}_over_gloo": over(name, size) for name in names if name != "gloo"}
        for size in map(str, SIZES)
    }


def replica(mode: str, replicas: int) -> None:
    """One replica: the engine starts this file again for each."""
    from samestep.launch.own import start

    wire = start(replicas, transport="shared memory" if mode == "shared" else "sockets")
    import torch

    torch.set_num_threads(1)
    found = {"gloo": gloo} if mode == "gloo" else {mode: ours}
    if mode == "shared":
        found["shared_left"] = ours_left
    times = {name: {str(size): timed(made(wire, size // 4), size) for size in SIZES} for name, made in found.items()}
    if mode == "gloo":
        torch.distributed.destroy_process_group()  # left to the end of the process, its threads may abort it
    if wire.rank == 0:
        os.write(1, json.dumps(times).encode() + b"\n")


def timed(call, size: int) -> float:
    """Microseconds a call, the median. The first ones are not counted."""
    calls, seconds = min(max(MOVED // size, CALLS[0]), CALLS[1]), []
    for _ in range(calls + 2):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return round(1e6 * statistics.median(seconds[2:]), 1)


def gloo(wire, count):
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        meeting = Path(tempfile.gettempdir(), f"samestep-exchange-{os.getppid()}")
        dist.init_process_group(
            "gloo", store=dist.FileStore(str(meeting), wire.size), rank=wire.rank, world_size=wire.size
        )
    tensor = torch.ones(count)
    dist.all_reduce(tensor)
    assert tensor.eq(wire.size).all()
    tensor.zero_()
    return lambda: dist.all_reduce(tensor)


def ours(wire, count, copied=True):
    import torch

    from samestep.wire.collective import Operation, Tag

    tensor = wire.memory(count, torch.empty(0)).fill_(1.0)
    parts = [tensor[count * r // wire.size : count * (r + 1) // wire.size] for r in range(wire.size)]
    mine, peers = parts[wire.rank], [r for r in range(wire.size) if r != wire.rank]
    places = {r: [torch.empty(mine.numel())] for r in peers}  # that sockets receive into

    def call():
        """As the exact strategy, but for its order of additions, which costs nothing."""
        parted = wire.borrow(Tag(0, Operation.REDUCE), {r: [parts[r]] for r in peers}, places)
        for (part,) in parted.wait().values():
            mine.add_(part)
        parted.release()
        whole = wire.borrow(Tag(0, Operation.GATHER), {r: [mine] for r in peers}, {r: [parts[r]] for r in peers})
        for r, (part,) in whole.wait().items():
            if copied and part is not parts[r]:
                parts[r].copy_(part)
        whole.release()
        parted.returned()
        whole.returned()

    call()
    assert (tensor if copied else mine).eq(wire.size).all()
    tensor.zero_()
    return call


def ours_left(wire, count):
    return ours(wire, count, copied=False)


if __name__ == "__main__":
    main()
