"""Small models, made on the fly through the project's own code."""

from pathlib import Path
from typing import Any

import torch

from samestep.model import gpt

EOS = 0
SHAPE = gpt.Shape(layers=1, width=32, heads=2, vocabulary=300, context=32, tied=False, inner_width=48)


def small(seed: int = 0) -> gpt.GPT:
    torch.manual_seed(seed)
    return gpt.GPT(SHAPE)


def smallest() -> torch.nn.Module:
    """Two parameters."""
    return torch.nn.Linear(40, 60)


def tokenizer(folder: Path) -> Path:
    """A tokenizer.json of bytes, whose end of text is token 0."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds

    words = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(kinds.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    made.add_special_tokens(words[:1])
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write(module: gpt.GPT, file: Path, folder: Path) -> None:
    """A model folder with the tokenizer `file`."""
    from samestep.model.folder import write_tokenizer

    gpt.save(module, folder, EOS)
    write_tokenizer(folder, file, None, EOS, SHAPE.context)


def base(folder: Path) -> Path:
    """A model folder to train adapters of."""
    file = tokenizer(folder / "tokenizer")
    (folder / "base").mkdir()
    write(small(), file, folder / "base")
    return folder / "base"


@torch.no_grad()
def adapted(folder: Path) -> tuple[gpt.GPT, Any]:
    """The module and peft's around it, with adapters as after some training."""
    from samestep.model import llama, lora
    from samestep.recipe.schema import Lora

    module = llama.load(folder, SHAPE)
    wrapped = lora.adapt(module, Lora(rank=2), head=module.lm_head)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.2)
    return module, wrapped


def write_adapter(origin: Path, folder: Path) -> None:
    """A folder with adapters of the model in `origin`."""
    from samestep.model import lora
    from samestep.model.folder import write_tokenizer

    torch.manual_seed(0)
    lora.save(adapted(origin)[1], folder, origin, "CAUSAL_LM")
    write_tokenizer(folder, origin / "tokenizer.json", origin, EOS, SHAPE.context)


def finished(folder: Path) -> Path:
    """The folder of a run that has trained adapters."""
    from samestep.recipe.load import dump, load
    from samestep.recover.digest import of_folder
    from samestep.recover.journal import Journal

    origin, run = base(folder), folder / "run"
    (run / "model").mkdir(parents=True)
    write_adapter(origin, run / "model")
    (run / "recipe.yaml").write_text(
        f"steps: 1\nmodel: {{path: {origin}, lora: {{rank: 2}}}}\nobjective: {{kind: sft}}\n"
    )
    (run / "recipe.yaml").write_text(dump(load(run / "recipe.yaml")))
    with Journal(run / "journal.jsonl") as written:
        written.write({"event": "step", "step": 1, "loss": 2.0, "tokens": 1000, "seconds": 0.5})
        written.write({"event": "saved", "digest": of_folder(run / "model")})
    return run
