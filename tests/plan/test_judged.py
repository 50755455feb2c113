"""benchmarks/planner.py on a few rows: what it counts, and what it says of what it cannot use."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

PLANNER = Path(__file__).parents[2] / "benchmarks" / "planner.py"
BASE = {
    "source": "a/b",
    "model": "Llama-2-7B",
    "seq_len": "4096",
    "strategy": "FSDP",
    "precision": "bf16",
    "micro_batch": "1",
}
ROWS = [
    BASE | {"gpu": "A100-80GB", "gpus": "8", "tokens_per_s_per_gpu": "3000"},
    BASE | {"gpu": "A100-80GB", "gpus": "16", "tokens_per_s_per_gpu": "2900"},
    BASE | {"gpu": "H100 SXM", "gpus": "64", "tokens_per_s_total": "400,000", "peak_mem_gib_per_gpu": "40"},
    BASE | {"gpu": "TPU v4", "gpus": "64", "tokens_per_s_total": "400000"},
    BASE | {"gpu": "H100", "seq_len": "", "tokens_per_s_total": "400000"},
]


def judged(tmp_path, rows, *arguments):
    file = tmp_path / "runs.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    command = [sys.executable, str(PLANNER), str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_json_holds_the_errors_and_the_reasons(tmp_path):
    found = json.loads(judged(tmp_path, ROWS, "--json"))
    assert found["rows"] == 3 and found["unused"] == {"unknown GPU TPU v4": 1, "no seq_len": 1}
    assert {"median_ape", "mean_ape", "spearman"} <= set(found["cold"])
    assert found["after_pilot"]["median_ape"] < found["cold"]["median_ape"] < 0.5
    assert found["peak_memory"]["rows"] == 1 and found["peak_memory"]["called_unfit"]["of"] == 3
    assert found["by_source"]["a/b"]["rows"] == 3


def test_the_table_names_each_part(tmp_path):
    text = judged(tmp_path, ROWS, "--rows")
    for words in (
        "3 runs with tokens/s used",
        "1 not used: no seq_len",
        "constant_mfu",
        "by_strategy",
        "speed 1.",
        "memory 0.",
    ):
        assert words in text, words


@pytest.mark.parametrize("rows", [ROWS[3:], ROWS[:1]])
def test_few_rows_or_none_are_no_error(tmp_path, rows):
    found = json.loads(judged(tmp_path, rows, "--json"))
    assert found["after_pilot"] == {"median_ape": None, "mean_ape": None} and found["cold"]["spearman"] is None
