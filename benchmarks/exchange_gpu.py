"""Seconds of an exact exchange of CUDA tensors over those of NCCL's all-reduce.

    python benchmarks/exchange_gpu.py [--calls 50] > exchange_gpu.json

One process a device, float32. `exact` is what `sync/exact.py` does with a bucket: each replica sends the others their
parts, adds up its own in rank order, and sends the sum to all, by NCCL's point-to-point calls; `nccl` its all-reduce.
Both on the same tensors, in turn, timed by CUDA events; medians. NCCL wants a device for each replica, so where there
are fewer than two nothing is measured, and the output says so.
"""

import argparse
import json
import os
import socket
import statistics
import sys

SIZES = (1 << 18, 1 << 20, 10 << 20, 40 << 20, 160 << 20)  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=50)
    calls = parser.parse_args().calls
    import torch
    from torch import multiprocessing

    devices = torch.cuda.device_count()
    if devices < 2:
        print(json.dumps({"skipped": f"NCCL wants a CUDA device for each of 2 replicas, and there are {devices}"}))
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(replica, (devices, port, calls), devices)


def replica(rank: int, size: int, port: int, calls: int) -> None:
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("nccl", rank=rank, world_size=size)
    found = {str(nbytes): timed(torch, dist, nbytes, calls) for nbytes in SIZES}
    if rank == 0:
        print(json.dumps({"device": torch.cuda.get_device_name(), "replicas": size, "milliseconds": found}, indent=1))
    dist.destroy_process_group()
    sys.stdout.flush()


def timed(torch, dist, nbytes: int, calls: int) -> dict:
    size = dist.get_world_size()
    tensor = torch.randn(nbytes // 4 // size * size, device="cuda")
    parts, arrived = tensor.chunk(size), [torch.empty(len(tensor) // size, device="cuda") for _ in range(size)]
    ways = {"exact": lambda: exact(torch, dist, list(parts), arrived), "nccl": lambda: dist.all_reduce(tensor)}
    seen: dict[str, list[float]] = {way: [] for way in ways}
    for call in range(calls + 5):
        for way, exchange in ways.items():
            tensor.normal_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            dist.barrier()
            begin.record()
            exchange()
            end.record()
            end.synchronize()
            if call >= 5:
                seen[way].append(begin.elapsed_time(end))
    medians = {way: round(statistics.median(times), 4) for way, times in seen.items()}
    return medians | {"exact_over_nccl": round(medians["exact"] / medians["nccl"], 3)}


def exact(torch, dist, parts: list, arrived: list) -> None:
    rank = dist.get_rank()
    arrived[rank].copy_(parts[rank])
    between(dist, [(parts[peer], arrived[peer], peer) for peer in range(len(parts)) if peer != rank])
    total = arrived[0]
    for part in arrived[1:]:
        total = total.add_(part)
    parts[rank].copy_(total)
    between(dist, [(parts[rank], parts[peer], peer) for peer in range(len(parts)) if peer != rank])


def between(dist, messages: list) -> None:
    calls = [dist.P2POp(dist.isend, out, peer) for out, _, peer in messages]
    calls += [dist.P2POp(dist.irecv, into, peer) for _, into, peer in messages]
    for work in dist.batch_isend_irecv(calls):
        work.wait()


if __name__ == "__main__":
    main()
