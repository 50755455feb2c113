"""samestep init: a commented recipe for the user's own files. What must be set first stands in capitals."""

from pathlib import Path

from samestep.errors import RecipeError
from samestep.recipe.load import did_you_mean

COLUMN = 38  # where comments start, if the line leaves room

EPOCHS = """
seed: 1
epochs: 1  # times the data is read; or steps: 300, or tokens: 10_000_000
lanes: 8  # the most replicas that can share a step; changes the model
"""

STEPS = """
seed: 1
steps: 1000  # or tokens: 10_000_000, or epochs: 1
lanes: 8  # the most replicas that can share a step; changes the model
"""

TUNED = """
model:
  path: PATH-OF-A-MODEL  # a Hugging Face folder; or name: org/model, of the hub
"""

LORA = """
  lora:  # small matrices beside the linear layers; they alone are trained
    rank: 16  # width of these matrices; more can learn more
    alpha: 32  # their output is scaled by alpha / rank
    dropout: 0.05
    targets: null  # ends of layer names: [q_proj, v_proj]; null: all linear layers
"""

DTYPE = """
  dtype: bfloat16  # of the matrix products; weights and sums stay float32
"""

NEW = """
model:
  family: llama  # made new, with a tokenizer trained on the data
  layers: 6
  width: 384  # a multiple of 64
  vocabulary: 4096  # tokens
"""

CHATS = """
# JSONL, Parquet or Arrow with rows {messages: [{role, content}, ...]} or {prompt, completion}
data:
  source: PATH-OF-YOUR-CHATS.jsonl  # file, folder or s3://...; or several: {a.jsonl: 1, b.jsonl: 0.5}
  context: 512  # tokens a row
  packing: true  # several samples a row, kept apart
  held_out: 0.02  # share of samples that is never trained; a hash of names chooses
  invalid: fail  # samples that cannot be used: fail names the first, skip counts them
  too_long: truncate  # samples of more tokens than context: fail, skip or truncate
"""

PAIRS = """
# JSONL, Parquet or Arrow with rows {prompt, chosen, rejected}: texts, or lists of {role, content}
data:
  source: PATH-OF-YOUR-PAIRS.jsonl  # file, folder or s3://...; or several: {a.jsonl: 1, b.jsonl: 0.5}
  context: 1024  # tokens a row; the prompt and one answer must fit
  packing: true  # several answers a row, kept apart
  held_out: 0.1  # share of pairs that is never trained; a hash of names chooses
  invalid: fail  # pairs that cannot be used: fail names the first, skip counts them
  too_long: skip  # pairs of more tokens than context: fail, skip or truncate
"""

TEXT = """
# Text files, or JSONL, Parquet or Arrow with rows {text: ...}
data:
  source: PATH-OF-YOUR-TEXTS  # file, folder or s3://...; or several: {a.jsonl: 1, b.jsonl: 0.5}
  text_field: text  # of rows
  context: 256  # tokens a row
  packing: true  # several documents a row
  held_out: 0.02  # share of documents that is never trained; a hash of names chooses
"""

SFT = """
objective:
  kind: sft
  train_on: answers  # assistant turns and completions; all: prompts and other turns too
"""

DPO = """
objective:
  kind: dpo
  loss: sigmoid  # or ipo
  beta: 0.1  # how closely the model is held to the reference; larger is closer
  label_smoothing: 0.0  # the share of pairs thought to be labelled wrongly
  reference: base  # the model without its adapters; start: as it began, computed once
"""

CAUSAL = """
objective: {kind: causal}  # every token is predicted from those before it
"""

REWARD = """
objective: {kind: reward}  # a score, higher for the chosen answer (Bradley-Terry)
"""

BATCH = """
batch:
  micro_batch: 4  # rows in memory at once
  accumulate: 1  # micro-batches; a step is lanes x accumulate x micro_batch rows
"""

OPTIMIZER = """
optimizer:
  kind: adamw
  learning_rate: RATE
  warmup: 10  # steps
  schedule: cosine  # or linear, constant
  final: 0.1  # share of the learning rate that is left at the end
  weight_decay: DECAY  # on matrices; never on vectors (norms, biases)
  clip: 1.0  # norm of the gradient; null: none
"""

EVALUATE = """
compute:
  checkpointing: none  # full: less memory, for about a third more time
evaluate:
  every: 20  # steps between held-out losses; 0: at the end only
  best: true  # keep the model with the lowest one
"""

SAMPLE = """
sample:
  prompt: "Once upon a time"  # the trained model goes on with it; null: no sample
  tokens: 64
"""

RUN = """
run:
  replicas: 1  # processes that share a step, at most `lanes`; changes no number
"""


def _optimizer(rate: str, decay: str) -> str:
    return OPTIMIZER.replace("RATE", rate).replace("DECAY", decay)


KINDS = {
    "sft": (
        "# Fine-tune all weights of a language model on chats, or on prompts with completions.",
        *(EPOCHS, TUNED, DTYPE, CHATS, SFT, BATCH, _optimizer("2e-5", "0.0"), EVALUATE, SAMPLE),
    ),
    "lora": (
        "# Fine-tune a language model with LoRA on chats, or on prompts with completions: a few weights only.",
        *(EPOCHS, TUNED, LORA, DTYPE, CHATS, SFT, BATCH, _optimizer("2e-4", "0.0"), EVALUATE, SAMPLE),
    ),
    "dpo": (
        "# Align a language model to preferences (DPO, arXiv 2305.18290) with LoRA.",
        *(EPOCHS, TUNED, LORA, DTYPE, PAIRS, DPO, BATCH, _optimizer("2e-5", "0.0"), EVALUATE, SAMPLE),
    ),
    "pretrain": (
        "# Train a small language model from new weights on text.",
        *(STEPS, NEW, DTYPE, TEXT, CAUSAL, BATCH, _optimizer("1e-3", "0.1"), EVALUATE, SAMPLE),
    ),
    "reward": (
        "# Train a model that scores answers, from preferences.",
        *(EPOCHS, TUNED, DTYPE, PAIRS, REWARD, BATCH, _optimizer("1e-5", "0.0"), EVALUATE),
    ),
}


def init(kind: str, to: Path | None) -> Path:
    """Write the recipe of `kind` to `to` (default KIND.yaml) and return where it stands.

    Raises RecipeError for an unknown kind and for a file that exists.
    """
    text = recipe(kind)
    to = to or Path(f"{kind}.yaml")
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        with to.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"init would write {to}, which exists; choose another file with --to, or delete it") from None
    return to


def recipe(kind: str) -> str:
    """The YAML of `kind`, with its comments in one column."""
    if kind not in KINDS:
        raise RecipeError(f"init knows no kind {kind!r}{did_you_mean(kind, KINDS) or '; it has ' + ', '.join(KINDS)}")
    sections = (section.strip("\n") for section in (*KINDS[kind], RUN))
    return "\n".join(_aligned(line) for section in sections for line in section.split("\n")) + "\n"


def lines(written: Path) -> list[str]:
    """The result for a terminal."""
    return [f"{written} is written: set what stands in capitals, then `samestep check {written}`"]


def _aligned(line: str) -> str:
    setting, mark, comment = line.partition("  # ")
    return f"{setting.ljust(COLUMN - 2)}{mark}{comment}" if mark else line
