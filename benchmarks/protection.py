"""What protection costs: the time of a step with everything that lets a run survive over that of the bare exact step.

    python benchmarks/protection.py [--replicas 2 4] [--rounds 40] [--steps 8] > protection.json

A Llama of 1.3 M parameters (4 layers, width 144, 2,048 tokens, context 128), float32, AdamW, clipping, one thread a
replica, all replicas on one host, one lane each. All is measured inside one run: a round is one block of steps in each
mode, in an order that is drawn anew, and the ratio is that of the medians of two blocks of one round. The first step of
a block is not counted.

off       the exact step: gradients exchanged, weights gathered; no death could be survived
seals     sums over all weights and moments before each commit and after it (recover.scrub_every: 1), and the vote
barrier   no replica commits before all can
journal   each step told to the engine and written to the journal
phases    each replica says where it is, and the engine looks at that (else it is stopped)
all       these four, as they are in every run
mirrored  all, and every moment kept and updated on a second replica (sync.state: mirrored)

The few bytes by which two replicas agree on what they send next are part of every mode.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from samestep.launch.engine import Program
from samestep.launch.local import Local
from samestep.recover.journal import Journal
from samestep.recover.protocol import Terms
from samestep.replica.board import Phase
from samestep.replica.place import connect, only_wire

CONTEXT, VOCABULARY = 128, 2048
SINGLE = ("seals", "barrier", "journal", "phases")
MODES = {"off": (), **{one: (one,) for one in SINGLE}, "all": SINGLE, "mirrored": (*SINGLE, "mirror")}


def main() -> None:
    wish = parse()
    if wish.replica:
        replica(wish)
        return
    found = {str(size): measured(size, wish) for size in wish.replicas}
    print(json.dumps({"cores": os.cpu_count(), "rows": wish.rows, "steps_of_a_block": wish.steps, "replicas": found}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=8, help="counted steps of a block")
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch")
    parser.add_argument("--replica", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(size: int, wish: argparse.Namespace) -> dict:
    options = {"--replica": size, "--rounds": wish.rounds, "--steps": wish.steps, "--rows": wish.rows}
    command = [sys.executable, __file__, *(str(word) for pair in options.items() for word in pair)]
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.jsonl") as journal:

        def hear(event: dict) -> None:
            if event["event"] == "round":
                rounds.append(event["medians"])
                print(size, event["medians"], file=sys.stderr, flush=True)
            elif event["event"] == "step":
                journal.write(event)

        Local().run(Program(command), Terms(size, size), hear)
    return report(rounds)


def report(rounds: list[dict[str, float]]) -> dict:
    """Of each mode the median step in ms, and its ratio to `off`: the median over rounds, and the quartiles."""

    def ratios(mode: str) -> list[float]:
        return [each[mode] / each["off"] for each in rounds]

    return {
        "step_ms": {mode: round(1000 * statistics.median(each[mode] for each in rounds), 2) for mode in MODES},
        "ratio": {mode: round(statistics.median(ratios(mode)), 4) for mode in MODES},
        "quartiles": {mode: [round(q, 4) for q in statistics.quantiles(ratios(mode))] for mode in MODES},
        "rounds": [{mode: round(seconds, 5) for mode, seconds in each.items()} for each in rounds],
    }


def replica(wish: argparse.Namespace) -> None:
    control = connect(os.environ)
    wire = only_wire(control)
    run = Run(control, wire, wish.rows)
    draw = random.Random(0)  # one order on all replicas
    for _ in range(wish.rounds):
        medians = {mode: run.block(MODES[mode], wish.steps) for mode in draw.sample(list(MODES), len(MODES))}
        if wire.rank == 0:
            control.send({"event": "round", "medians": medians})
    wire.close()


class Run:
    def __init__(self, control, wire, rows: int) -> None:
        import torch

        from samestep import AdamW, Step
        from samestep.model.gpt import GPT, Shape

        torch.set_num_threads(1)
        torch.manual_seed(0)
        shape = Shape(layers=4, width=144, heads=4, vocabulary=VOCABULARY, context=CONTEXT, tied=True, dropout=0.0)
        self._module, self._control, self._wire = GPT(shape), control, wire
        self._step = Step(self._module, wire, AdamW(), lanes=wire.size, clip=1.0, scrub=1)
        generator = torch.Generator().manual_seed(wire.rank)
        self._tokens = torch.randint(0, VOCABULARY, (rows, CONTEXT + 1), generator=generator)
        self._targets = wire.size * rows * CONTEXT

    def block(self, on: tuple[str, ...], steps: int) -> float:
        """Median seconds of a step with those protections."""
        self._switch(on)
        seconds = []
        for _ in range(1 + steps):
            began = time.perf_counter()
            self._advance(on)
            seconds.append(time.perf_counter() - began)
        if self._wire.rank == 0:
            os.kill(os.getppid(), signal.SIGCONT)
        return statistics.median(seconds[1:])

    def _switch(self, on: tuple[str, ...]) -> None:
        step = self._step
        step.close()
        step.copies = 2 if "mirror" in on else 1
        step._begin(self._wire, None)
        step._scrub = int("seals" in on)
        step.seal()
        if self._wire.rank == 0 and "phases" not in on and "journal" not in on:
            os.kill(os.getppid(), signal.SIGSTOP)

    def _advance(self, on: tuple[str, ...]) -> None:
        step, number = self._step, self._step.number + 1
        self._phase(on, number, Phase.DATA)
        self._phase(on, number, Phase.FORWARD)
        loss = self._module(self._tokens[:, :-1], self._tokens[:, 1:]) / self._targets
        self._phase(on, number, Phase.BACKWARD)
        step.backward(loss)
        self._phase(on, number, Phase.EXCHANGE)
        sums = step.reduce()
        self._phase(on, number, Phase.UPDATE)
        step.propose(1e-4)
        if "barrier" in on:
            step.commit()
        else:
            step._apply()
        if "journal" in on and self._wire.rank == 0:
            self._control.send(
                {"event": "step", "step": number, "loss": sums.loss, "gradient_norm": sums.gradient_norm}
            )

    def _phase(self, on: tuple[str, ...], number: int, phase: Phase) -> None:
        if "phases" in on:
            self._control.phase(number, phase)


if __name__ == "__main__":
    main()
