"""The model card (README.md) of an exported model: what it was trained on, how, and what came out. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samestep.events import Event
from samestep.recipe.load import dump
from samestep.recipe.schema import Recipe
from samestep.units import duration

OBJECTIVES = {
    "causal": "trained to predict the next token of text",
    "sft": "fine-tuned on examples (SFT)",
    "dpo": "aligned to preferences (DPO, arXiv 2305.18290)",
    "reward": "trained to score answers from preferences (Bradley-Terry)",
}
WEIGHTS = {
    "model": "all weights, as a transformers folder",
    "adapter": "LoRA adapters, as a peft folder; the base model is needed beside it",
    "merged": "LoRA folded into the base model, as a transformers folder",
}
CLASSES = {"model": "AutoModelForCausalLM", "reward": "AutoModelForSequenceClassification"}
PEFT_CLASSES = {"model": "AutoPeftModelForCausalLM", "reward": "AutoPeftModelForSequenceClassification"}
# Keys of the journal's first line -> what the card calls them
COUNTS = {
    "format": "format",
    "samples": "samples",
    "held_out_samples": "held-out samples",
    "skipped": "samples left out",
    "rows": "rows an epoch",
    "rows_digest": "digest of the rows",
}

Rows = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Facts:
    """What a card is made of. `kind` is a key of WEIGHTS, `versions` library -> version, `base` the base model."""

    title: str
    kind: str
    base: str | None
    recipe: Recipe
    events: Sequence[Event]  # of the journal
    versions: Mapping[str, str]


def card(facts: Facts) -> str:
    """The README.md, Markdown with the YAML head that the Hugging Face hub reads (hub docs, "Model Cards")."""
    what = OBJECTIVES[facts.recipe.objective.kind]
    start = f"from `{facts.base}`" if facts.base else "from new weights"
    sections = [
        _head(facts),
        f"# {facts.title}",
        f"A model {what}, {start}. This folder holds {WEIGHTS[facts.kind]}.",
        f"## Data\n\n{_table(_data(facts))}",
        f"## Figures\n\n{_table(figures(facts.events))}",
        f"## Made with\n\n{_table([*facts.versions.items(), *_kernels(facts.events)])}",
        f"## Recipe\n\n{_fenced('yaml', dump(facts.recipe))}",
        f"## Use\n\n{_fenced('python', _use(facts))}",
        f"## Licence\n\n{_licence(facts.base)}",
    ]
    return "\n\n".join(sections) + "\n"


def figures(events: Sequence[Event]) -> Rows:
    """Steps, trained tokens, losses (nats a token, or a pair of preferences) and digest, as (name, text)."""
    steps = [event for event in events if event["event"] == "step"]
    rows: list[tuple[str, Any]] = [("steps", len(steps))]
    if steps:
        rows.append(("trained tokens", f"{sum(step['tokens'] for step in steps):,}"))
        rows.append(("loss, first and last step", f"{_number(steps[0]['loss'])}, {_number(steps[-1]['loss'])}"))
        rows.append(("time of the steps", duration(sum(step["seconds"] for step in steps))))
    rows += _held_out([event for event in events if event["event"] == "evaluated"])
    saved = [event["digest"] for event in events if event["event"] == "saved"]
    return rows + [("digest of the trained parameters", f"`{digest}`") for digest in saved[-1:]]


def _held_out(evaluations: Sequence[Event]) -> list[tuple[str, Any]]:
    """Each measure of the last evaluation, beside the first one where there are several."""
    measures = {"loss": "held-out loss", "accuracy": "held-out accuracy", "bits_per_byte": "held-out bits per byte"}
    shown = [*evaluations[:1], *evaluations[1:][-1:]]
    heading = ", first and last" if len(shown) > 1 else ""
    return [
        (name + heading, ", ".join(_number(event.get(key)) for event in shown))
        for key, name in measures.items()
        if shown and shown[-1].get(key) is not None
    ]


def _data(facts: Facts) -> Rows:
    data, opened = facts.recipe.data, _first(facts.events, "opened")
    read = {name: "" if weight == 1 else f", read {weight:g} times an epoch" for name, weight in data.weights.items()}
    sources = [(f"source{often}", f"`{name}`") for name, often in read.items()]
    counts = [(name, opened[key]) for key, name in COUNTS.items() if opened.get(key) is not None]
    return [*sources, *counts, ("tokens a row, at most", data.context), ("share held out", f"{data.held_out:g}")]


def _kernels(events: Sequence[Event]) -> Rows:
    return [(f"{name} in training", value) for name, value in _first(events, "started").get("kernels", {}).items()]


def _first(events: Sequence[Event], kind: str) -> Event:
    return next((event for event in events if event["event"] == kind), {})


def _head(facts: Facts) -> str:
    name = facts.recipe.model.name
    lines = ["---", f"library_name: {'peft' if facts.kind == 'adapter' else 'transformers'}"]
    lines += [f"base_model: {name}"] if name else []
    lines += ["license: other", "license_name: see-base-model"] if facts.base else []
    return "\n".join([*lines, f"tags: [samestep, {facts.recipe.objective.kind}]", "---"])


def _use(facts: Facts) -> str:
    task = "reward" if facts.recipe.objective.kind == "reward" else "model"
    library, names = ("peft", PEFT_CLASSES) if facts.kind == "adapter" else ("transformers", CLASSES)
    return (
        f"from {library} import {names[task]}\nfrom transformers import AutoTokenizer\n\n"
        f'model = {names[task]}.from_pretrained("PATH_OF_THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")\n'
    )


def _licence(base: str | None) -> str:
    if base is None:
        return "The weights are new; whoever trained them says under which licence they may be used."
    return f"See base model: the licence of `{base}` holds, and those of the data."


def _fenced(language: str, text: str) -> str:
    """A code block whose fence is longer than any row of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(rows: Rows) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(value: Any) -> str:
    """One line of a table: a bar would end the cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
