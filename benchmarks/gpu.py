"""Tokens a second and MFU of whole steps on one GPU in bfloat16, and what bits that repeat cost.

    python benchmarks/gpu.py [--models 124M,350M,1.3B] [--compile] > gpu.json
    python benchmarks/gpu.py --device cpu --models tiny        # a trial of the program, not of a GPU

A step is that of `samestep train` with one replica: forward and backward of its micro-batches through the library's own
model and loss, sums over lanes, clipping, AdamW on float32 weights, sums against flipped bits (recover.scrub_every: 1).
`exact` has the settings of samestep/replica/device.py, `fast` those of torch with strategy fast; each runs in a process
of its own, in turn, since cuBLAS reads its workspace once. Times are wall times around a synchronized device; of all
steps but the first ones the median.

MFU: model FLOPs over what the GPU could have done, as in PaLM (Chowdhery et al., arXiv 2204.02311, appendix B). A token
takes 6 N + 12 L w T: N parameters (a tied embedding once), L layers of width w, a context of T; attention counts as if
it were not causal, and nothing that is computed again counts. What the GPU could have done is the peak of dense
bfloat16 on its data sheet (samestep/plan/devices.yaml). exact_over_fast: seconds a step of the one over those of the
other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

CONVENTION = "6 N + 12 L w T FLOPs a token, over the data sheet's dense bfloat16"
VOCABULARY = 50304
# layers, width, heads, context, rows of a micro-batch, micro-batches of a step
MODELS = {
    "tiny": (2, 64, 2, 64, 2, 2),
    "124M": (12, 768, 12, 1024, 16, 4),
    "350M": (24, 1024, 16, 1024, 16, 4),
    "1.3B": (24, 2048, 16, 2048, 4, 4),
}
MODES = ("exact", "fast")
WARM = 3  # steps that do not count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="124M,350M,1.3B", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=10, help="of each process, after the first ones")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each kind, in turn")
    parser.add_argument("--compile", action="store_true", help="the model goes through torch.compile")
    parser.add_argument("--one", choices=MODES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := [name for name in asked.models.split(",") if name not in MODELS]:
        parser.error(f"--models has {', '.join(unknown)}, but knows {', '.join(MODELS)}")
    if asked.one:
        print(json.dumps(measured(asked.one, asked.models, asked.device, asked.steps, asked.compile)))
        return
    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"skipped": "no CUDA device here: nothing measured; --device cpu tries the program"}))
        return
    print(json.dumps(report(asked), indent=1))


def report(asked: argparse.Namespace) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu"
    found = {model: compared(model, asked, peak_of(name)) for model in asked.models.split(",")}
    known = {"device": name, "peak": peak_of(name), "torch": torch.__version__, "cuda": torch.version.cuda}
    return known | {"compile": asked.compile, "convention": CONVENTION, "models": found}


def compared(model: str, asked: argparse.Namespace, peak: float | None) -> dict[str, Any]:
    """Of one model, both modes in turn."""
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for _ in range(asked.rounds):
        for mode in MODES:
            runs[mode].append(alone(mode, model, asked))
    if failed := [run["failed"] for each in runs.values() for run in each if "failed" in run]:
        return {"failed": failed[0]}
    return summary(model, runs, peak)


def alone(mode: str, model: str, asked: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own."""
    command = [sys.executable, __file__, "--one", mode, "--models", model, "--device", asked.device]
    command += ["--steps", str(asked.steps), *(["--compile"] if asked.compile else [])]
    environment = {key: value for key, value in os.environ.items() if key != "CUBLAS_WORKSPACE_CONFIG"}
    if mode == "exact":
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def summary(model: str, runs: dict[str, list[dict[str, Any]]], peak: float | None) -> dict[str, Any]:
    layers, width, _, context, rows, micros = MODELS[model]
    parameters = runs["exact"][0]["parameters"]
    seconds = {mode: statistics.median(s for run in each for s in run["seconds"]) for mode, each in runs.items()}
    speed = {mode: rows * micros * context / each for mode, each in seconds.items()}
    flops = flops_a_token(parameters, layers, width, context)
    return {
        "parameters": parameters,
        "tokens_a_step": rows * micros * context,
        "tokens_per_second": {mode: round(each) for mode, each in speed.items()},
        "mfu": peak and {mode: round(each * flops / peak, 4) for mode, each in speed.items()},
        "exact_over_fast": round(seconds["exact"] / seconds["fast"], 4),
        "exact_repeats": len({run["digest"] for run in runs["exact"]}) == 1,
        "peak_memory": max(run["peak_memory"] for each in runs.values() for run in each),
        "seconds": {mode: [run["seconds"] for run in each] for mode, each in runs.items()},
    }


def flops_a_token(parameters: int, layers: int, width: int, context: int) -> int:
    return 6 * parameters + 12 * layers * width * context


def peak_of(name: str) -> float | None:
    """FLOP/s of dense bfloat16; None where the device is not known."""
    from samestep.plan.devices import named

    device = named(name)
    return device and device.peak[device.computes("bf16")]


def measured(mode: str, model: str, kind: str, steps: int, compiled: bool) -> dict[str, Any]:
    """Seconds of each step of this process, and the digest of the weights after them."""
    import torch

    from samestep.model.task import build
    from samestep.recover.digest import of_tensors
    from samestep.replica import device

    place = torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
        device.repeatable(mode == "exact")
    recipe = recipe_of(model, compiled)
    vocabulary = recipe.model.vocabulary
    task = build(recipe, seed=1, vocabulary=vocabulary, eos=0, tokenizer_file=None, base=None)
    task.module.to(place)
    seconds = timed(task, recipe, mode, place, steps)
    parameters = dict(task.module.named_parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters.values()),
        "seconds": [round(each, 6) for each in seconds],
        "digest": of_tensors(parameters),
        "peak_memory": device.memory(place).get("device_peak", 0),
    }


def recipe_of(model: str, compiled: bool) -> Any:
    from samestep.recipe.schema import Recipe

    layers, width, heads, context, rows, micros = MODELS[model]
    vocabulary = 512 if model == "tiny" else VOCABULARY
    shape = {"layers": layers, "width": width, "heads": heads, "vocabulary": vocabulary, "dtype": "bfloat16"}
    return Recipe(
        steps=1,
        lanes=1,
        model=shape,
        data={"context": context},
        batch={"micro_batch": rows, "accumulate": micros},
        compute={"compile": compiled},
    )


def timed(task: Any, recipe: Any, mode: str, place: Any, steps: int) -> list[float]:
    import torch

    from samestep.data.feed import MicroBatch
    from samestep.model.optim import rule
    from samestep.replica import device
    from samestep.replica.step import Step
    from samestep.wire import loopback

    (wire,) = loopback.connect(1)
    micros, shape = recipe.batch.accumulate, (recipe.batch.micro_batch, recipe.data.context)
    step = Step(task.module, wire, rule(recipe.optimizer), lanes=1, clip=1.0, accumulate=micros, strategy=mode, scrub=1)
    step.seal()
    numbers = torch.Generator().manual_seed(0)
    tokens = torch.randint(recipe.model.vocabulary, (micros, *shape), generator=numbers)
    found = []
    for number in range(WARM + steps):
        device.finish(place)
        began = time.perf_counter()
        for batch in tokens:
            step.backward(task.loss(MicroBatch(batch, batch.roll(-1, 1))) / tokens.numel())
        step.update(1e-4)
        device.finish(place)
        if number >= WARM:
            found.append(time.perf_counter() - began)
    return found


if __name__ == "__main__":
    main()
