"""What protection costs: the time of a step with everything that lets a run survive over that of the bare exact step.

    python benchmarks/protection.py [--replicas 2 4] [--rounds 300] [--width 144] [--rows 4] > protection.json

A Llama of 4 layers, context 128 and 2,048 tokens (1.3 M parameters at width 144), float32, AdamW, clipping, one thread
a replica, all replicas on one host, one lane each. All is measured inside one run: a round is one step in each mode, in
an order that is drawn anew, so that a ratio is that of two steps within a second of each other; its median over the
rounds is given, with the interval in which it lies with 95 % (order statistics). What protects costs so much a weight,
and computing so much a weight and token: the ratio follows from the tokens of a replica's step, which are --rows x 128.

off       the exact step: gradients exchanged, weights gathered; no death could be survived
seals     sums over all weights and moments before each commit and after it (recover.scrub_every: 1), and the vote
others    no replica commits before all can; each step told to the engine and journalled; each replica says where it is
all       these together, as they are in every run
mirrored  all, and every moment kept and updated on a second replica (sync.state: mirrored)

Two parts are in every mode: the few bytes by which two replicas agree on what they send next, and the engine, which
looks at the phases beside the steps; `engine` is the part of one core that it takes.
"""

import argparse
import json
import math
import os
import random
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
MODES = {  # seals, others, mirror
    "off": (False, False, False),
    "seals": (True, False, False),
    "others": (False, True, False),
    "all": (True, True, False),
    "mirrored": (True, True, True),
}
WARM_UP = 3  # rounds


def main() -> None:
    wish = parse()
    if wish.replica:
        replica(wish)
        return
    found = {str(size): measured(size, wish) for size in wish.replicas}
    print(json.dumps({"cores": os.cpu_count(), "width": wish.width, "rows": wish.rows, "replicas": found}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch")
    parser.add_argument("--width", type=int, default=144, help="of the model")
    parser.add_argument("--replica", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(size: int, wish: argparse.Namespace) -> dict:
    options = {"--replica": size, "--rounds": wish.rounds, "--rows": wish.rows, "--width": wish.width}
    command = [sys.executable, __file__, *(str(word) for pair in options.items() for word in pair)]
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.jsonl") as journal:

        def hear(event: dict) -> None:
            if event["event"] == "round":
                rounds.append(event["seconds"])
                print(size, event["seconds"], file=sys.stderr, flush=True)
            elif event["event"] == "step":
                journal.write(event)

        wall, cpu = time.monotonic(), time.process_time()
        Local().run(Program(command), Terms(size, size), hear)
        engine = (time.process_time() - cpu) / (time.monotonic() - wall)
    return report(rounds[WARM_UP:]) | {"engine": round(engine, 4)}


def report(rounds: list[dict[str, float]]) -> dict:
    """Of each mode the median step in ms, and its ratio to `off`."""
    count = len(rounds)
    inside = math.ceil(0.98 * math.sqrt(count))  # a median's 95 % are so many places around the middle

    def ratios(mode: str) -> list[float]:
        return sorted(each[mode] / each["off"] for each in rounds)

    def interval(mode: str) -> list[float]:
        return [round(ratios(mode)[place], 4) for place in (count // 2 - inside, count // 2 + inside)]

    return {
        "step_ms": {mode: round(1000 * statistics.median(each[mode] for each in rounds), 2) for mode in MODES},
        "ratio": {mode: round(statistics.median(ratios(mode)), 4) for mode in MODES},
        "interval": {mode: interval(mode) for mode in MODES},
        "rounds": {mode: [round(each[mode], 4) for each in rounds] for mode in MODES},
    }


def replica(wish: argparse.Namespace) -> None:
    control = connect(os.environ)
    wire = only_wire(control)
    run = Run(control, wire, wish.rows, wish.width)
    draw = random.Random(0)  # one order on all replicas
    for _ in range(WARM_UP + wish.rounds):
        seconds = {mode: run.timed(*MODES[mode]) for mode in draw.sample(list(MODES), len(MODES))}
        if wire.rank == 0:
            control.send({"event": "round", "seconds": seconds})
    wire.close()


class Run:
    """Two models that take turns: one with its moments on one replica each, one with two copies of them."""

    def __init__(self, control, wire, rows: int, width: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._control, self._wire = control, wire
        self._made = {copies: made(wire, copies, width) for copies in (1, 2)}
        self._frozen = {module: step._frozen for module, step in self._made.values()}
        generator = torch.Generator().manual_seed(wire.rank)
        self._tokens = torch.randint(0, VOCABULARY, (rows, CONTEXT + 1), generator=generator)
        self._targets = wire.size * rows * CONTEXT

    def timed(self, seals: bool, others: bool, mirror: bool) -> float:
        """Seconds of a step. In every mode what rests has been read just before, as the commit before would have."""
        module, step = self._made[2 if mirror else 1]
        step._scrub, step._frozen = 1, self._frozen[module]
        step.seal()
        if not seals:
            step._scrub, step.state.seal, step._frozen = 0, None, None
        began = time.perf_counter()
        sums = self._advance(module, step, others)
        if others and self._wire.rank == 0:
            event = {"event": "step", "step": step.number, "loss": sums.loss, "gradient_norm": sums.gradient_norm}
            self._control.send(event)
        return time.perf_counter() - began

    def _advance(self, module, step, others: bool):
        phase = self._control.phase if others else lambda number, phase: None
        number = step.number + 1
        phase(number, Phase.DATA)
        phase(number, Phase.FORWARD)
        loss = module(self._tokens[:, :-1], self._tokens[:, 1:]) / self._targets
        phase(number, Phase.BACKWARD)
        step.backward(loss)
        phase(number, Phase.EXCHANGE)
        sums = step.reduce()
        phase(number, Phase.UPDATE)
        step.propose(1e-4)
        if others:
            step.commit()
        else:
            step.apply()
        return sums


def made(wire, copies: int, width: int):
    import torch

    from samestep import AdamW, Step
    from samestep.model.gpt import GPT, Shape

    torch.manual_seed(0)
    shape = Shape(layers=4, width=width, heads=4, vocabulary=VOCABULARY, context=CONTEXT, tied=True, dropout=0.0)
    module = GPT(shape)
    return module, Step(module, wire, AdamW(), lanes=wire.size, clip=1.0, copies=copies, scrub=1)


if __name__ == "__main__":
    main()
