"""The model asked for text."""

from collections.abc import Sequence

import torch

from samestep.data.corpus import Corpus
from samestep.data.formats import Turn
from samestep.data.order import mix
from samestep.data.template import Template, load
from samestep.events import Event
from samestep.model.task import Task
from samestep.replica.job import Job
from samestep.replica.setup import SAMPLE, corpora_of


@torch.no_grad()
def answer(job: Job, task: Task, prompt: str) -> Event:
    """How the model goes on from a prompt; of a chat model trained on chats, its answer to it as a user's turn."""
    from tokenizers import Tokenizer

    assert task.generate is not None  # the recipe refuses prompts for a model without a vocabulary
    wish, corpora = job.recipe.sample, corpora_of(job)
    tokenizer = Tokenizer.from_file(str(corpora[0].tokenizer_file))
    generator = torch.Generator().manual_seed(mix(job.recipe.seed, SAMPLE))
    asked = tokenizer.encode(_asked(task, corpora, prompt), add_special_tokens=False).ids
    tokens = task.generate(asked, wish.tokens, wish.temperature, generator)
    return {"event": "sample", "prompt": prompt, "text": tokenizer.decode(tokens)}


def _asked(task: Task, corpora: Sequence[Corpus], prompt: str) -> str:
    """The prompt as the model's chat template writes a user's turn, where it was trained on chats."""
    chats = any(corpus.format in ("messages", "preference") for corpus in corpora)
    text, special = load(task.origin) if chats and task.origin is not None else (None, {})
    return prompt if text is None else Template(text, special).render((Turn("user", prompt),), prompt=True)
