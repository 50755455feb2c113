"""What is done with the trained model: held-out loss, the model folder, a sample."""

import os
import shutil
from pathlib import Path

import torch

from samestep.data.order import mix
from samestep.data.tokenize import Corpus, load
from samestep.evaluate.heldout import evaluate
from samestep.events import Event
from samestep.model.task import Task
from samestep.recover import digest
from samestep.replica.board import Phase
from samestep.replica.job import Job
from samestep.replica.place import Control
from samestep.replica.setup import SAMPLE, held_out_of
from samestep.wire.collective import Collective


def finish(job: Job, task: Task, wire: Collective, control: Control) -> None:
    corpus = load(job.corpus)
    control.phase(job.steps, Phase.EVALUATE)
    if len(corpus.held_out.ends):
        held_out = evaluate(task, held_out_of(job, corpus), wire, job.steps)
        if wire.rank == 0:
            bits = held_out.bits_per_byte(len(corpus.held_out.ids), corpus.held_out_bytes, corpus.vocabulary)
            control.send(
                {
                    "event": "evaluated",
                    "loss": held_out.loss,
                    "tokens": held_out.targets,
                    "bits_per_byte": bits,
                    "zlib_bits_per_byte": 8 * corpus.held_out_zlib / corpus.held_out_bytes,
                }
            )
    if wire.rank == 0:
        control.phase(job.steps, Phase.SAVE)
        control.send({"event": "saved", "digest": save(task, job.run / "model")})
        if job.recipe.sample.prompt is not None:
            control.send(sample(job, task, corpus, job.recipe.sample.prompt))


def save(task: Task, folder: Path) -> str:
    """Write the model folder; it appears whole or not at all. Returns its digest, read back from the disk."""
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        task.save(unfinished)
        found = digest.of_folder(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return found


@torch.no_grad()
def sample(job: Job, task: Task, corpus: Corpus, prompt: str) -> Event:
    from tokenizers import Tokenizer

    wish = job.recipe.sample
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_file))
    generator = torch.Generator().manual_seed(mix(job.recipe.seed, SAMPLE))
    task.module.eval()
    tokens = task.generate(tokenizer.encode(prompt).ids, wish.tokens, wish.temperature, generator)
    return {"event": "sample", "prompt": prompt, "text": tokenizer.decode(tokens)}
