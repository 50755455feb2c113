"""Chats to token ids and trained positions: samestep's prepare and datasets.map, with as many processes.

    python benchmarks/tokenizing.py --chats train_all_pruned_SDG.jsonl --model models/smollm2 [--samples 1000000]

The file holds `samples` short chats made from the real ones, each altered so that all differ (some 400 bytes a line).
datasets.map does what a user would write: load_dataset("json"), then apply_chat_template on batches, with the
assistant's tokens marked by a template with {% generation %}, which is transformers' own way to ask for them. Both
start with empty caches and fresh processes. One round runs each once, in turn, at the whole size and at a tenth of it,
then each again with its cache (again_seconds). Machines drift, so compare the ratios of one round; cpu_seconds, with
imports, drift less. Memory is the largest sum over a process and its children, in MB: pss counts mapped files too, uss
is what is theirs alone.
"""

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from itertools import count, islice
from pathlib import Path

import psutil

MODES = ("samestep", "datasets")
LONGEST = 560  # bytes of a line that is taken: their mean is then some 400
MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)


def main() -> None:
    arguments = parse()
    if arguments.mode:
        print(json.dumps(MEASURED[arguments.mode](arguments)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        rounds = []
        for samples in (arguments.samples // 10, arguments.samples):
            file = Path(scratch) / f"{samples}.jsonl"
            write(arguments.chats, file, samples)
            for number in range(arguments.rounds):
                order = MODES if number % 2 == 0 else MODES[::-1]
                one = {mode: both_starts(mode, file, Path(scratch) / "cache", arguments) for mode in order}
                rounds.append({"samples": samples, "megabytes": file.stat().st_size // 10**6} | one)
                print(json.dumps(rounds[-1]), file=sys.stderr)
            file.unlink()
    print(json.dumps(report(rounds, arguments.workers), indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=Path, required=True, help="JSONL of real chats, {messages: [...]}")
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="folder for some 3 GB; default: that of temporary files")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write(chats: Path, file: Path, samples: int) -> None:
    """The real chats without system turns, the short ones, again and again, numbered so that no two are equal."""
    with chats.open() as source:
        rows = [[turn for turn in json.loads(line)["messages"] if turn["role"] != "system"] for line in source]
    short = [turns for turns in rows if len(json.dumps(turns)) <= LONGEST]
    numbered = (altered(turns, copy) for copy in count() for turns in short)
    with file.open("w") as target:
        target.writelines(json.dumps({"messages": turns}) + "\n" for turns in islice(numbered, samples))


def altered(turns: list[dict], copy: int) -> list[dict]:
    return [{"role": turn["role"], "content": f"{turn['content']} ({copy})"} for turn in turns]


def both_starts(mode: str, file: Path, cache: Path, arguments: argparse.Namespace) -> dict:
    shutil.rmtree(cache, ignore_errors=True)
    first, again = (started(mode, file, cache, arguments) for _ in range(2))
    if first["digest"] != again["digest"]:
        raise SystemExit(f"{mode}: the second start gave other tokens")
    return first | {"again_seconds": again["seconds"], "again_wall_seconds": again["wall_seconds"]}


def started(mode: str, file: Path, cache: Path, arguments: argparse.Namespace) -> dict:
    """Runs one mode in a process of its own and watches its memory."""
    command = [sys.executable, __file__, "--mode", mode, "--file", str(file), "--cache", str(cache)]
    command += ["--chats", str(arguments.chats), "--model", str(arguments.model), "--workers", str(arguments.workers)]
    began, before = time.perf_counter(), processor_seconds()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peaks = {"pss_mb": 0, "uss_mb": 0}
        watcher = threading.Thread(target=watch, args=(process, peaks))
        watcher.start()
        output, _ = process.communicate()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{mode} failed")
    spent = {"wall_seconds": time.perf_counter() - began, "cpu_seconds": processor_seconds() - before}
    return json.loads(output.splitlines()[-1]) | peaks | {name: round(value, 2) for name, value in spent.items()}


def processor_seconds() -> float:
    """Of all processes that were started here and have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watch(process: subprocess.Popen, peaks: dict) -> None:
    while process.poll() is None:
        found = [memory for one in family(process.pid) if (memory := memory_of(one))]
        for name in ("pss", "uss"):
            total = sum(getattr(memory, name) for memory in found) // 10**6
            peaks[f"{name}_mb"] = max(peaks[f"{name}_mb"], total)
        time.sleep(0.25)


def family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_of(process: psutil.Process):
    try:
        return process.memory_full_info()
    except psutil.Error:  # it has just ended
        return None


def with_samestep(arguments: argparse.Namespace) -> dict:
    from samestep.data.tokenize import prepare
    from samestep.data.vocabulary import given
    from samestep.recipe.schema import Data

    began = time.perf_counter()
    data = Data(held_out=0)
    words = given(arguments.model)
    base, source = arguments.file.parent, str(arguments.file)
    corpus = prepare(source, data, "sft", "answers", words, arguments.cache, base, quiet, arguments.workers)
    seconds = time.perf_counter() - began
    tokens = corpus.train
    assert tokens.trained is not None
    return figures(seconds, len(tokens.ends), len(tokens.ids), int(tokens.trained.sum()), corpus.folder.name)


def with_datasets(arguments: argparse.Namespace) -> dict:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokenizer.chat_template = MARKED

    def encode(batch: dict) -> dict:
        found = tokenizer.apply_chat_template(
            batch["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return {"input_ids": found["input_ids"], "assistant_masks": found["assistant_masks"]}

    rows = datasets.load_dataset("json", data_files=str(arguments.file), split="train", cache_dir=str(arguments.cache))
    ready = rows.map(encode, batched=True, num_proc=arguments.workers, remove_columns=rows.column_names)
    seconds = time.perf_counter() - began
    sizes = [totals(ready.data[name]) for name in ("input_ids", "assistant_masks")]
    return figures(seconds, len(ready), sizes[0][0], sizes[1][1], ready._fingerprint)


def totals(column) -> tuple[int, int]:
    """Elements and their sum."""
    import pyarrow.compute as compute

    chunks = [chunk.flatten() for chunk in column.chunks]
    return sum(map(len, chunks)), sum(compute.sum(chunk).as_py() for chunk in chunks)


def figures(seconds: float, samples: int, tokens: int, trained: int, digest: str) -> dict:
    return {"seconds": round(seconds, 2), "rows": samples, "tokens": tokens, "trained": trained, "digest": digest}


def quiet(_: str) -> None: ...


MEASURED = {"samestep": with_samestep, "datasets": with_datasets}


def report(rounds: list[dict], workers: int) -> dict:
    for one in rounds:
        same = [(one[mode]["rows"], one[mode]["tokens"], one[mode]["trained"]) for mode in MODES]
        one["same_counts"] = same[0] == same[1]
        one["speed_ratio"] = round(one["datasets"]["seconds"] / one["samestep"]["seconds"], 2)
    return {"machine": platform.platform(), "workers": workers, "rounds": rounds}


if __name__ == "__main__":
    main()
