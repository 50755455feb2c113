"""samestep plan RECIPE --gpu here against runs of the recipe on this machine: step time, memory and bytes sent.

    python benchmarks/plan_here.py [--cases tiny gpt-1x256 ...] [--replicas 1 2 3 4] [--to FILE]

For each case one `samestep pilot` on 2 replicas, then the plan for 1 to 4, and only then the runs: the pilot measures
micro-batches (alone and while two compute), five real steps on 2 replicas, single passes over memory, and a process
without a model. So a run on 2 replicas is like the pilot's own setting; those on 1, 3 and 4, and all memory, are
predicted from it. The last cases have no pilot of their own: what is sent in other numbers is predicted from that of
`tiny`, with which they have to be asked for. Eight minutes on 2 cores; models/smollm2 and data/chats.jsonl have to be
there (samestep fetch). Times need a machine that does nothing else.

A step is the median of those after the second. Memory of a replica is the most that its process has had resident (the
`peak` of the journal). That of the machine is read shortly before the run ends: the sum over the replicas of the
proportional set sizes (PSS: a page that n processes have counts a nth in each) of their own and of shared memory, and
once the files that one of them has in memory, since other programs have libraries in common with them. Bytes are those
of the journal: each step's of the first replica, and of all replicas between their first and last account.
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
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
WARM_UP = 2  # steps
PLAIN = ["data.held_out=0", "sample.prompt=null", "evaluate.prompts=[]", "evaluate.every=0"]
GPT = ["model.layers=6", "model.width=384", "model.vocabulary=8192", "lanes=4"]
SHORT = ["batch.micro_batch=1", "data.context=128"]
CASES = {
    "tiny": ("tiny", "steps=30", []),
    "gpt-1x256": ("quickstart", "steps=10", [*GPT, "batch.micro_batch=1"]),
    "gpt-4x256": ("quickstart", "steps=6", [*GPT, "batch.micro_batch=4"]),
    "lora-1x128": ("lora", "steps=5", SHORT),
    "sft-1x128": ("sft", "steps=5", SHORT),
    "tiny-bfloat16": ("tiny", "steps=12", ["sync.wire=bfloat16"]),
    "tiny-int8": ("tiny", "steps=12", ["sync.wire=int8"]),
    "tiny-diloco": ("tiny", "steps=12", ["sync.strategy=diloco", "sync.diloco.every=4"]),
}
PILOTED = ("tiny", "gpt-1x256", "gpt-4x256", "lora-1x128", "sft-1x128")  # the others take the pilot of `tiny`, and
# are run on several replicas only: one sends nothing.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2, 3, 4])
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args()
    began, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.cases:
            found[name] = case(name, asked.replicas, Path(folder))
    result = {
        "machine": machine(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        **worst(found),
        "cases": found,
    }
    if asked.to:
        asked.to.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(found)), file=sys.stderr)
    print(json.dumps(result, indent=1))


def case(name: str, replicas: list[int], folder: Path) -> dict:
    recipe, steps, changes = CASES[name]
    arguments = [str(ROOT / "recipes" / f"{recipe}.yaml"), steps, *PLAIN, *changes, f"run.cache={folder / 'cache'}"]
    if name in PILOTED:
        samestep("pilot", *arguments, "--replicas", "2")
    else:
        replicas = [count for count in replicas if count > 1]
    planned = samestep("plan", *arguments, "--gpu", "here", "--replicas", ",".join(map(str, replicas)))
    found = []
    for row in planned["rows"]:
        run = folder / f"{name}-{row['replicas']}"
        found.append(compared(row, measured(arguments, row["replicas"], run)))
        print(name, json.dumps(found[-1]), file=sys.stderr, flush=True)
    return {"recipe": recipe, "changes": [steps, *changes], "replicas": found}


def samestep(*arguments: str) -> dict:
    command = [sys.executable, "-m", "samestep.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def measured(arguments: list[str], replicas: int, run: Path) -> dict:
    """One run, and what its processes have while it goes on."""
    command = [
        sys.executable,
        "-m",
        "samestep.cli",
        "train",
        *arguments,
        "--replicas",
        str(replicas),
        "--run",
        str(run),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    last, shares = int(arguments[1].partition("=")[2]), None
    while process.poll() is None:
        events = journal(run)
        if shares is None and any(e["event"] == "step" and e["step"] >= last - 1 for e in events):
            pids = {e["rank"]: e["pid"] for e in events if e["event"] == "started"}
            shares = {rank: resident(pid) for rank, pid in pids.items()}
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {process.stderr.read().decode()}")
    return summary(journal(run), shares or {})


def journal(run: Path) -> list[dict]:
    try:
        lines = (run / "journal.jsonl").read_text().splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def resident(pid: int) -> dict | None:
    """Bytes: of this process and its part of what it shares, and of files; None where it has ended."""
    try:
        rollup, status = (Path(f"/proc/{pid}/{name}").read_text() for name in ("smaps_rollup", "status"))
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in (rollup + status).splitlines() if ":" in line)
    size = {name: 1024 * int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem", "RssFile")}
    return {"own": size["Pss_Anon"] + size["Pss_Shmem"], "files": size["RssFile"]}


def summary(events: list[dict], shares: dict[int, dict | None]) -> dict:
    steps = [e for e in events if e["event"] == "step"]
    spent: dict[int, list[dict]] = {}
    for event in events:
        if event["event"] == "spent":
            spent.setdefault(event["rank"], []).append(event)
    sent = [after["bytes_sent"] - before["bytes_sent"] for before, after in pairwise(steps)]
    whole = all(shares.values()) and len(shares) == len(spent)
    return {
        "step": statistics.median(e["seconds"] for e in steps[WARM_UP:]),
        "steps": [e["seconds"] for e in steps],
        "peak": {rank: max(e["peak"] for e in each) for rank, each in sorted(spent.items())},
        "machine": sum(e["own"] for e in shares.values()) + max(e["files"] for e in shares.values()) if whole else None,
        "sent": sent,
        "sent_between": {
            rank: [each[-1]["step"] - each[0]["step"], each[-1]["bytes_sent"] - each[0]["bytes_sent"]]
            for rank, each in sorted(spent.items())
        },
    }


def compared(row: dict, run: dict) -> dict:
    """Errors are of the prediction, as a share of what was measured."""
    most = max(run["peak"].values())
    errors = {"step": row["seconds"] / run["step"] - 1, "memory": row["memory"] / most - 1}
    if run["machine"]:
        errors["machine"] = row["machine"] / run["machine"] - 1
    return {
        "replicas": row["replicas"],
        "errors": {name: round(error, 4) for name, error in errors.items()},
        "bytes_exact": exact(row["sent"], run),
        "planned": {name: row[name] for name in ("seconds", "step", "memory", "parts", "machine", "sent", "state")},
        "measured": run,
    }


def exact(planned: list[float], run: dict) -> bool:
    """Whether each step of the first replica sends what is planned, and all replicas between two accounts. Of diloco
    the bytes of a leg come with its end; all legs are alike here, and the first one is in no difference.
    """
    legs = [sent for sent in run["sent"] if sent]
    if all(run["sent"]) or not legs:
        first = set(run["sent"]) == {planned[0]}
    else:
        first = len(set(legs)) == 1 and legs[0] * (len(legs) + 1) == round(planned[0] * len(run["steps"]))
    between = run["sent_between"].items()
    return first and all(sent == round(steps * planned[int(rank)]) for rank, (steps, sent) in between)


def worst(found: dict) -> dict:
    every = [(name, one) for name, each in found.items() for one in each["replicas"]]
    most = {}
    for kind in ("step", "memory", "machine"):
        errors = [(abs(one["errors"][kind]), name, one["replicas"]) for name, one in every if kind in one["errors"]]
        most[kind] = {"median": round(statistics.median(e for e, *_ in errors), 4), "worst": max(errors)}
    return {"errors": most, "bytes_exact": all(one["bytes_exact"] for _, one in every)}


def table(found: dict) -> list[str]:
    """Markdown: planned, and how far off."""
    lines = ["| recipe | replicas | a step, ms | off by | memory each, MB | off by | of all, MB | off by | bytes |"]
    lines.append("|---" * 9 + "|")
    for name, each in found.items():
        for one in each["replicas"]:
            plan, errors = one["planned"], one["errors"]
            cells = [name, str(one["replicas"]), f"{1000 * plan['seconds']:,.0f}", f"{errors['step']:+.1%}"]
            cells += [f"{plan['memory'] / 1e6:,.0f}", f"{errors['memory']:+.1%}", f"{plan['machine'] / 1e6:,.0f}"]
            cells += [f"{errors['machine']:+.1%}" if "machine" in errors else "?"]
            lines.append(f"| {' | '.join(cells)} | {'exact' if one['bytes_exact'] else 'differ'} |")
    return lines


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}


if __name__ == "__main__":
    main()
