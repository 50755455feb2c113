"""Fine-tuning a real chat model: trained tokens a second and peak memory of samestep, TRL and plain DDP.

    samestep fetch smollm2 && samestep fetch chats
    python benchmarks/sft.py models/smollm2 data/chats.jsonl [--rounds 3] [--steps 6] > sft.json

SmolLM2-135M-Instruct on the same chats, all tokens trained, bfloat16 autocast over float32 weights, AdamW, clipping at
1.0, micro-batches of 4 x 256 tokens, one a replica and step, two replicas of one thread on one host. Full and LoRA
(rank 16 on all linear layers).

    samestep, samestep_lora          packed, sharded optimizer state
    samestep_checkpointed            the same with compute.checkpointing: full
    trl, trl_lora                    packed, else SFTConfig's defaults, under which activations are checkpointed
    trl_kept, trl_lora_kept          packed, gradient_checkpointing=False: computes as much as samestep
    trl_default                      SFTConfig's defaults: neither packed nor kept
    ddp                              torch DDP with samestep's model and loss on random rows of the same shape

One round runs each once, in an order that rotates; compare the ratios of one round. The first two steps warm up and do
not count. A trained token is one that a loss counts; padding is none. Memory is the largest replica's peak resident
set, mapped files and libraries included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPLICAS, CONTEXT, ROWS, WARM_UP = 2, 256, 4, 2
RATE, SEED = 3e-5, 1
OURS = ("samestep", "samestep_lora", "samestep_checkpointed")
THEIRS = ("trl", "trl_kept", "trl_default", "trl_lora", "trl_lora_kept", "ddp")


def main() -> None:
    arguments = parse()
    if arguments.child:
        child(arguments)
        return
    rounds = []
    for number in range(arguments.rounds):
        turn = number % len(arguments.modes)
        order = arguments.modes[turn:] + arguments.modes[:turn]
        rounds.append({mode: measure(mode, arguments) for mode in order})
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    print(json.dumps(report(rounds), indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("chats", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--modes", nargs="+", default=[*OURS, *THEIRS])
    parser.add_argument("--child", choices=THEIRS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(mode: str, arguments: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run = ours if mode in OURS else theirs
        steps, peak = run(mode, arguments, Path(folder))
    tokens, seconds = (sum(step[key] for step in steps[WARM_UP:]) for key in ("tokens", "seconds"))
    return {"tokens_per_second": round(tokens / seconds, 2), "peak_mb": round(peak / 1e6, 1), "steps": steps}


def ours(mode: str, arguments: argparse.Namespace, folder: Path) -> tuple[list, int]:
    settings = {
        "seed": SEED,
        "steps": WARM_UP + arguments.steps,
        "lanes": REPLICAS,
        "model": {"path": str(arguments.model.resolve())} | ({"lora": {"rank": 16}} if mode.endswith("lora") else {}),
        "data": {"source": str(arguments.chats.resolve()), "context": CONTEXT, "held_out": 0, "too_long": "truncate"},
        "batch": {"micro_batch": ROWS},
        "objective": {"kind": "sft", "train_on": "all"},
        "optimizer": {"learning_rate": RATE, "weight_decay": 0, "beta2": 0.999},
        "compute": {"checkpointing": "full" if mode.endswith("checkpointed") else "none"},
        "sync": {"state": "sharded"},
        "run": {"replicas": REPLICAS},
    }
    recipe = folder / "sft.yaml"
    recipe.write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "samestep.cli", "train", str(recipe), "--run", str(folder / "run")]
    peak = watched(command, "samestep.replica")
    events = [json.loads(line) for line in (folder / "run" / "journal.jsonl").read_text().splitlines()]
    return [{key: e[key] for key in ("tokens", "seconds")} for e in events if e["event"] == "step"], peak


def theirs(mode: str, arguments: argparse.Namespace, folder: Path) -> tuple[list, int]:
    out = folder / "steps.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(REPLICAS)]
    given = [str(arguments.model), str(arguments.chats), "--steps", str(arguments.steps), "--child", mode]
    peak = watched([*launch, __file__, *given, "--out", str(out)], f"--child {mode}")
    return json.loads(out.read_text()), peak


def watched(command: list[str], marker: str) -> int:
    """Run the command; the largest peak resident set, in bytes, of the processes whose command line has `marker`."""
    peaks: dict[int, int] = {}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    words = threading.Thread(target=lambda: peaks.setdefault(-1, 0) or said.append(process.stderr.read()))
    said: list[str] = []
    words.start()
    while process.poll() is None:
        for pid in descendants(process.pid):
            if marker in read(f"/proc/{pid}/cmdline").replace("\0", " "):
                high = [line for line in read(f"/proc/{pid}/status").splitlines() if line.startswith("VmHWM")]
                peaks[pid] = 1024 * int(high[0].split()[1]) if high else peaks.get(pid, 0)
        time.sleep(0.2)
    words.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said[0][-4000:]}")
    return max(peaks.values())


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()]
    return children + [below for child in children for below in descendants(child)]


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # it has ended
        return ""


def report(rounds: list) -> dict:
    def ratio(above: str, below: str, key: str) -> float | None:
        pairs = [(r[above][key], r[below][key]) for r in rounds if above in r and below in r]
        return round(statistics.median(a / b for a, b in pairs), 3) if pairs else None

    speeds = [("samestep", other) for other in ("trl", "trl_kept", "trl_default", "ddp")]
    speeds += [("samestep_lora", other) for other in ("trl_lora", "trl_lora_kept")]
    speeds += [("samestep_checkpointed", other) for other in ("trl", "trl_default")]
    return {
        "cores": os.cpu_count(),
        "medians": {
            mode: {key: statistics.median(r[mode][key] for r in rounds) for key in ("tokens_per_second", "peak_mb")}
            for mode in rounds[0]
        },
        "speed": {f"{ours} / {other}": ratio(ours, other, "tokens_per_second") for ours, other in speeds},
        "memory": {f"{ours} / {other}": ratio(ours, other, "peak_mb") for ours, other in speeds},
        "rounds": rounds,
    }


def child(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    steps = ddp(arguments) if arguments.child == "ddp" else trl(arguments)
    if os.environ["RANK"] == "0":
        arguments.out.write_text(json.dumps(steps))


def trl(arguments: argparse.Namespace) -> list:
    import torch
    import torch.distributed as dist
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    mode, counted = arguments.child, []

    class Counting(SFTTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            counted.append(int((inputs["labels"][:, 1:] != -100).sum()))
            return super().training_step(model, inputs, num_items_in_batch)

    folder = tempfile.mkdtemp()
    config = SFTConfig(
        output_dir=folder,
        max_steps=WARM_UP + arguments.steps,
        per_device_train_batch_size=ROWS,
        max_length=CONTEXT,
        packing=mode != "trl_default",
        learning_rate=RATE,
        bf16=True,
        use_cpu=True,
        seed=SEED,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": torch.float32},
        **({"gradient_checkpointing": False} if mode.endswith("kept") else {}),
    )
    data = load_dataset("json", data_files=str(arguments.chats), split="train", cache_dir=folder)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapters = lora if "lora" in mode else None
    trainer = Counting(str(arguments.model), args=config, train_dataset=data, peft_config=adapters)
    times = timed(trainer)
    trainer.train()
    totals = torch.tensor(counted)
    dist.all_reduce(totals)
    return [
        {"tokens": int(tokens), "seconds": end - start}
        for tokens, start, end in zip(totals, times, times[1:], strict=False)
    ]


def timed(trainer) -> list[float]:
    """The times at which training began and at which each step was done."""
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            times.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

    trainer.add_callback(Clock())
    return times


def ddp(arguments: argparse.Namespace) -> list:
    """samestep's model and loss under torch's DDP, with random rows of the same shape."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from samestep.model import llama
    from samestep.model.folder import check_config

    dist.init_process_group("gloo")
    shape = llama.shape_of(check_config(arguments.model / "config.json"), CONTEXT)
    module = llama.load(arguments.model, shape)
    parallel = DistributedDataParallel(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    positions = torch.cat([torch.arange(150), torch.arange(CONTEXT - 150)]).repeat(ROWS, 1)
    steps = []
    for _ in range(WARM_UP + arguments.steps):
        tokens = torch.randint(0, shape.vocabulary, (ROWS, CONTEXT))
        began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = parallel(tokens, tokens, positions) / tokens.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        steps.append({"tokens": REPLICAS * ROWS * CONTEXT, "seconds": time.perf_counter() - began})
    return steps


if __name__ == "__main__":
    main()
