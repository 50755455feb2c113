"""Tokens a second and peak memory: samestep exact and fast, torch DDP, and DDP without synchronisation (the bound).

    python benchmarks/ddp.py [--rounds 5] [--steps 12] > ddp.json

The 13.8 M-parameter Llama (6 layers, width 384, 8,192 tokens, context 256), bfloat16 autocast, one thread and one
micro-batch a replica and step, fused AdamW, clipping at 1.0, two replicas on one host. All four do the same
mathematics on the same batches. One round runs each once, in a new order each time; machines drift, so compare the
ratios of one round; cpu_ms is the processor time of a step, which drifts less. All four are started by samestep's
engine, so DDP too has its settings of malloc. Peak memory is that of the largest replica beyond a bare process that has
imported torch.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPLICAS, CONTEXT, VOCABULARY, WARM_UP = 2, 256, 8192, 3
MODES = ("exact", "fast", "ddp", "bound")
ROWS = (1, 8)


def main() -> None:
    arguments = parse()
    if arguments.mode:
        replica(arguments.mode, arguments.rows, arguments.steps)
        return
    bare = bare_memory()
    rounds = []
    for number in range(arguments.rounds):
        order = MODES[number % len(MODES) :] + MODES[: number % len(MODES)]
        for rows in arguments.sizes:
            rounds.append({"rows": rows} | {mode: measure(mode, rows, arguments.steps, bare) for mode in order})
            print(json.dumps(rounds[-1]), file=sys.stderr)
    print(json.dumps(report(rounds, bare), indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sizes", type=int, nargs="+", default=ROWS, help="rows of a micro-batch")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(mode: str, rows: int, steps: int, bare: int) -> dict:
    """Start the replicas of one run and collect: tokens/s by step times of replica 0, the largest peak in MB."""
    command = [sys.executable, __file__, "--mode", mode, "--rows", str(rows), "--steps", str(steps)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = [json.loads(line) for line in output.splitlines()]
    seconds = statistics.median(next(f for f in found if f["rank"] == 0)["seconds"])
    return {
        "tokens_per_second": round(REPLICAS * rows * CONTEXT / seconds, 1),
        "step_ms": round(1000 * seconds, 1),
        "cpu_ms": round(1000 * statistics.median(s for f in found for s in f["cpu"]), 1),
        "peak_mb": round((max(f["peak"] for f in found) - bare) / 1e6, 1),
        "loss": found[0]["loss"],
    }


def report(rounds: list, bare: int) -> dict:
    return {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "bare_mb": bare / 1e6},
        "sizes": {f"{rows}x{CONTEXT}": medians([r for r in rounds if r["rows"] == rows]) for rows in ROWS},
        "rounds": rounds,
    }


def medians(rounds: list) -> dict:
    """Medians of each mode, and of the ratios within each round."""

    def ratio(above: str, below: str, key: str) -> float:
        return round(statistics.median(r[above][key] / r[below][key] for r in rounds), 3)

    if not rounds:
        return {}
    return {
        **{mode: {k: statistics.median(r[mode][k] for r in rounds) for k in rounds[0][mode]} for mode in MODES},
        "exact_speed_over_ddp": ratio("exact", "ddp", "tokens_per_second"),
        "exact_speed_over_fast": ratio("exact", "fast", "tokens_per_second"),
        "bound_speed_over_ddp": ratio("bound", "ddp", "tokens_per_second"),
        "exact_cpu_over_ddp": ratio("exact", "ddp", "cpu_ms"),
        "exact_memory_over_ddp": ratio("exact", "ddp", "peak_mb"),
    }


def bare_memory() -> int:
    code = "import torch, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    return 1024 * int(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout)


def replica(mode: str, rows: int, steps: int) -> None:
    """One replica: the engine starts this file again for each."""
    from samestep.launch.own import start

    wire = start(REPLICAS, transport="torch" if mode == "fast" else "shared memory")
    import torch

    from samestep.model.gpt import GPT, Shape

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = GPT(Shape(layers=6, width=384, heads=6, vocabulary=VOCABULARY, context=CONTEXT, tied=True, dropout=0.0))
    step = {"exact": samestep_step, "fast": samestep_step, "ddp": ddp_step, "bound": plain_step}[mode]
    advance = step(mode, module, wire)
    seconds: list[float] = []
    cpu: list[float] = []
    for n in range(WARM_UP + steps):
        generator = torch.Generator().manual_seed(n * REPLICAS + wire.rank)
        tokens = torch.randint(0, VOCABULARY, (rows, CONTEXT + 1), generator=generator)
        began, cpu_began = time.perf_counter(), time.process_time()
        loss = advance(tokens[:, :-1], tokens[:, 1:], REPLICAS * rows * CONTEXT)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = json.dumps(
        {"rank": wire.rank, "seconds": seconds[WARM_UP:], "cpu": cpu[WARM_UP:], "peak": peak, "loss": loss}
    )
    os.write(1, line.encode() + b"\n")


def samestep_step(mode, module, wire):
    import torch

    import samestep

    step = samestep.Step(module, wire, samestep.AdamW(), lanes=REPLICAS, clip=1.0, strategy=mode)

    def advance(tokens, targets, count):
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(tokens, targets) / count
        step.backward(loss)
        return step.update(1e-3).loss

    return advance


def ddp_step(mode, module, wire):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    meeting = Path(tempfile.gettempdir(), f"samestep-benchmark-{os.getppid()}")
    dist.init_process_group("gloo", store=dist.FileStore(str(meeting), REPLICAS), rank=wire.rank, world_size=REPLICAS)
    return plain_step(mode, DistributedDataParallel(module), wire)


def optimizer_of(module):
    """That of samestep's default recipe, in torch's own fused form."""
    import torch

    matrices = [p for p in module.parameters() if p.dim() >= 2]
    vectors = [p for p in module.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def plain_step(mode, module, wire):
    import torch

    optimizer = optimizer_of(module)

    def advance(tokens, targets, count):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(tokens, targets) / (count / REPLICAS)  # DDP takes the mean over replicas
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return advance


if __name__ == "__main__":
    main()
