"""One step's loss and gradients, full and of LoRA, are those of plain transformers and peft on the same samples
unpacked and unsharded, each tensor within 1e-5 of its norm; so packing on and off are the same.

The corpus is prepared from JSONL as a run does it. The plain side knows texts and spans only: no code of samestep.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from samestep.data.feed import Fixed, Source
from samestep.data.rows import rows_of
from samestep.data.tokenize import prepare
from samestep.data.vocabulary import given
from samestep.model import lora
from samestep.model.task import Task, build
from samestep.recipe.schema import Recipe

CONTEXT = 160
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
Sample = list[tuple[str, bool]]  # texts one after the other, and whether each is trained


def chats() -> list[list[dict[str, str]]]:
    """Of one to three questions with their answers, of very different lengths."""
    draw = random.Random(0)

    def words() -> str:
        return "".join(draw.choices("abcdefgh ÄÖ東", k=draw.randint(1, 9)))

    roles = ("user", "assistant")
    return [[{"role": roles[n % 2], "content": words()} for n in range(2 * draw.randint(1, 3))] for _ in range(11)]


def pairs() -> list[dict[str, Any]]:
    return [
        {"prompt": chat[:-1], "chosen": chat[-1:], "rejected": [{"role": "assistant", "content": f"no {n}"}]}
        for n, chat in enumerate(chats())
    ]


def spans(chat: list[dict[str, str]], trained: bool = True) -> Sample:
    found: Sample = []
    for turn in chat:
        answer = trained and turn["role"] == "assistant"
        found += [(f"<|{turn['role']}|>", False), (turn["content"] + END, answer)]
    return found


def samples(kind: str) -> list[Sample]:
    """What the recipe should train on: all answers of a chat, of pairs chosen and rejected in turn."""
    if kind == "sft":
        return [spans(chat) for chat in chats()]
    return [spans(pair["prompt"], False) + spans(pair[key]) for pair in pairs() for key in ("chosen", "rejected")]


def encode(tokenizer: Any, sample: Sample) -> tuple[Tensor, Tensor]:
    """Ids and the next ones where they are trained, int64 [n]."""
    parts = [tokenizer(text)["input_ids"] for text, _ in sample]
    ids = torch.tensor([token for part in parts for token in part])
    trained = torch.tensor([flag for part, (_, flag) in zip(parts, sample, strict=True) for _ in part])
    return ids, ids.where(trained, -100).roll(-1).index_fill(0, torch.tensor([len(ids) - 1]), -100)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with a tokenizer of bytes and a chat template, a stored score, and the samples as JSONL."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    tokenizer = Tokenizer(models.BPE({c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([USER, ASSISTANT, END])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=TEMPLATE)
    for architecture in ("llama", "qwen2"):
        fast.save_pretrained(home / architecture)
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(
            architecture, vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=None,
            eos_token_id=fast.eos_token_id, initializer_range=0.2, tie_word_embeddings=True,
            pad_token_id=fast.convert_tokens_to_ids(USER),  # a token that occurs: its embedding gets no gradient
        )  # fmt: skip
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(home / architecture)
    for name, rows in (("sft", [{"messages": chat} for chat in chats()]), ("dpo", pairs())):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


@dataclass(frozen=True)
class Ours:
    task: Task
    loss: Tensor
    gradients: dict[str, Tensor]
    rows: int


def ours(home: Path, kind: str, packing: bool, model: dict[str, Any], *, architecture: str) -> Ours:
    """The sum over an epoch of small micro-batches, of which the last has missing rows."""
    source = "sft.jsonl" if kind == "sft" else "dpo.jsonl"
    recipe = Recipe.model_validate(
        {
            "epochs": 1,
            "data": {"source": source, "context": CONTEXT, "packing": packing, "held_out": 0, "too_long": "fail"},
            "model": {"path": architecture, "dtype": "float32", **model},
            "objective": {"kind": kind},
        }
    )
    told = given(home / architecture)
    corpus = prepare(source, recipe.data, kind, "answers", told, home / "cache", home, lambda line: None, workers=1)
    rows = rows_of(corpus.train, recipe.data, kind)
    reader = Fixed([Source(corpus.train, rows)], context=CONTEXT, micro_batch=3, eos=corpus.eos)
    reader.reader.reference = references(reader.reader.sequences)
    task = build(
        recipe,
        seed=1,
        vocabulary=corpus.vocabulary,
        eos=corpus.eos,
        tokenizer_file=corpus.tokenizer_file,
        base=home,
    )
    move(task.module)
    trained = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
    loss, gradients = torch.zeros(()), {name: torch.zeros_like(p) for name, p in trained.items()}
    for number in range(len(reader)):  # gradients are taken over after each micro-batch, as a step does
        task.module.zero_grad()
        micro = task.loss(reader.micro_batch(number))
        micro.backward()
        loss += micro.detach()
        for name, parameter in trained.items():
            gradients[name] += parameter.grad
    assert all(p.grad is None for p in task.module.parameters() if not p.requires_grad)
    return Ours(task, loss, gradients, len(rows))


def references(sequences: int) -> Tensor:
    """Log-probabilities of a reference model, one a sequence."""
    return -20 * torch.rand(sequences, generator=torch.Generator().manual_seed(2))


def move(module: torch.nn.Module) -> None:
    """Adapters as after some training."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)


def plain(home: Path, kind: str, task: Task, architecture: str, adapters: bool, folder: Path) -> Any:
    """The model as a user of transformers and peft has it, from files that the task saved."""
    task.save(folder)
    loaded = transformers.AutoModelForSequenceClassification if kind == "reward" else transformers.AutoModelForCausalLM
    settings = {"num_labels": 1} if kind == "reward" else {}
    if not adapters:
        return loaded.from_pretrained(folder, **settings)
    with lora.quiet():
        base = loaded.from_pretrained(home / architecture, **settings)
        return peft.PeftModel.from_pretrained(base, folder, is_trainable=True)


def plain_loss(module: Any, tokenizer: Any, kind: str) -> Tensor:
    """The sum over samples, each run through the model alone."""
    encoded = [encode(tokenizer, sample) for sample in samples(kind)]
    outputs = [module(input_ids=ids.unsqueeze(0), use_cache=False).logits[0] for ids, _ in encoded]
    if kind == "reward":
        scores = torch.stack([output.squeeze() for output in outputs])
        return -torch.nn.functional.logsigmoid(scores[0::2] - scores[1::2]).sum()
    sums = -torch.stack(
        [
            torch.nn.functional.cross_entropy(output, targets, reduction="sum")
            for output, (_, targets) in zip(outputs, encoded, strict=True)
        ]
    )
    if kind == "sft":
        return -sums.sum()
    ratios = sums - references(len(sums))
    return -torch.nn.functional.logsigmoid(0.1 * (ratios[0::2] - ratios[1::2])).sum()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_loss_and_gradients_equal_plain_transformers_with_packing_on_and_off(
    kind: str, adapters: bool, architecture: str, home: Path, tmp_path: Path
) -> None:
    model = {"lora": {"rank": 4}} if adapters else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / architecture)
    found = [ours(home, kind, packing, model, architecture=architecture) for packing in (True, False)]
    assert found[0].rows < found[1].rows == 11
    module = plain(home, kind, found[0].task, architecture, adapters, tmp_path)
    wanted = plain_loss(module, tokenizer, kind)
    wanted.backward()
    prefix = "base_model.model." if adapters else ""
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    for one in found:
        assert one.gradients.keys() == {name.removeprefix(prefix) for name in gradients}
        torch.testing.assert_close(one.loss, wanted.detach(), rtol=1e-5, atol=0)
        for name, gradient in one.gradients.items():
            expected = gradients[prefix + name]
            assert expected.norm() > 0, name
            assert (gradient - expected).norm() <= 1e-5 * expected.norm(), name


def test_frozen_weights_stay_mapped_from_the_models_folder(home: Path) -> None:
    task = ours(home, "sft", True, {"lora": {"rank": 4}}, architecture="llama").task
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if str(home / "llama") in line]
    mapped = [range(int(start, 16), int(stop, 16)) for start, stop in spans]
    frozen = {name: p for name, p in task.module.named_parameters() if not p.requires_grad}
    assert len(frozen) == 20
    assert all(any(p.data_ptr() in span for span in mapped) for p in frozen.values())


def test_what_is_trained_is_the_answers_as_the_chat_template_writes_them(home: Path) -> None:
    """The spans above against transformers' own rendering, so that both sides cannot be wrong together."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "llama")
    for chat, sample in zip(chats(), samples("sft"), strict=True):
        ids, targets = encode(tokenizer, sample)
        assert tokenizer.apply_chat_template(chat, return_dict=False) == ids.tolist()
        answers = "".join(turn["content"] + END for turn in chat if turn["role"] == "assistant")
        assert tokenizer.decode(targets[targets >= 0]) == answers
