"""benchmarks/gpu.py, but for the GPU: its arithmetic, its trial on a processor, and what it says without a device."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    found = importlib.util.spec_from_file_location("benchmark_gpu", FILE)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def run(*arguments):
    done = subprocess.run([sys.executable, FILE, *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here: its absence cannot be tried")
def test_without_a_device_it_says_so_and_measures_nothing():
    assert run() == {"skipped": "no CUDA device here: nothing measured; --device cpu tries the program"}


@pytest.mark.parametrize(("model", "parameters"), [("124M", 124e6), ("350M", 353e6), ("1.3B", 1.31e9)])
def test_models_are_of_the_size_that_their_names_say(gpu, model, parameters):
    from samestep.model.blank import blank
    from samestep.model.gpt import GPT, Shape

    layers, width, heads, context, *_ = gpu.MODELS[model]
    with blank():
        module = GPT(Shape(layers, width, heads, gpu.VOCABULARY, context))
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(parameters, rel=0.01)


def test_the_share_of_the_peak_is_by_the_convention(gpu):
    """GPT-3 175B on an A100 as PaLM counts it: 6 N and attention, over 312 TFLOP/s."""
    assert gpu.flops_a_token(174_604_000_000, 96, 12288, 2048) == 6 * 174_604_000_000 + 12 * 96 * 12288 * 2048
    assert gpu.peak_of("NVIDIA H100 80GB HBM3") == pytest.approx(989.4e12, rel=0.01)
    assert gpu.peak_of("NVIDIA A100-SXM4-80GB") == 312e12 and gpu.peak_of("cpu") is None


def test_the_summary_holds_exact_against_fast(gpu):
    runs = {
        "exact": [{"parameters": 1000, "seconds": [2.0, 2.0], "digest": "a", "peak_memory": 5}] * 2,
        "fast": [{"parameters": 1000, "seconds": [1.0, 3.0, 1.0], "digest": "b", "peak_memory": 7}],
    }
    found = gpu.summary("tiny", runs, 1e6)
    assert found["exact_over_fast"] == 2.0 and found["exact_repeats"] and found["peak_memory"] == 7
    tokens = 2 * 2 * 64
    assert found["tokens_per_second"] == {"exact": tokens // 2, "fast": tokens}
    assert found["mfu"]["fast"] == round(tokens * (6 * 1000 + 12 * 2 * 64 * 64) / 1e6, 4)
    assert gpu.summary("tiny", runs, None)["mfu"] is None


def test_a_model_that_does_not_fit_is_told_as_that(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "alone", lambda mode, model, asked: {"failed": f"{mode} ran out of memory"})
    asked = gpu.argparse.Namespace(rounds=1)
    assert gpu.compared("1.3B", asked, None) == {"failed": "exact ran out of memory"}


@pytest.mark.slow
def test_the_program_runs_on_a_processor():
    found = run("--device", "cpu", "--models", "tiny", "--steps", "2", "--rounds", "2")
    (tiny,) = found["models"].values()
    assert tiny["exact_repeats"] and tiny["mfu"] is None and tiny["tokens_per_second"]["exact"] > 0
    assert [len(each) for each in tiny["seconds"]["fast"]] == [2, 2]
