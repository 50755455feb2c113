import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from samestep.recipe.load import load
from samestep.recipe.schema import Data, Lora, Model, Recipe, Reward, Sample, Sft
from samestep.report.card import Facts, card, figures

STEP = {"event": "step", "tokens": 500, "seconds": 30.0}
EVENTS = [
    {"event": "opened", "format": "messages", "samples": 2000, "skipped": 3, "rows": 700, "rows_digest": "abc"},
    {"event": "started", "kernels": {"torch": "2.13.0", "cpu": "A|B"}},
    {**STEP, "step": 1, "loss": 3.0},
    {"event": "evaluated", "step": 1, "loss": 2.75, "accuracy": 0.5},
    {**STEP, "step": 2, "loss": 2.25},
    {"event": "evaluated", "step": 2, "loss": 2.5, "accuracy": 0.75},
    {"event": "saved", "digest": "sha256:00"},
]


def facts(kind="model", base="org/base", events=EVENTS, **recipe):
    recipe = {"steps": 2, "model": Model(name="org/base"), "objective": Sft(kind="sft"), **recipe}
    return Facts("tuned", kind, base, Recipe(**recipe), events, {"samestep": "0.1.0", "torch": "2.13.0"})


def test_figures_are_those_of_the_journal():
    assert dict(figures(EVENTS)) == {
        "steps": 2,
        "trained tokens": "1,000",
        "loss, first and last step": "3.0000, 2.2500",
        "time of the steps": "1 min 0 s",
        "held-out loss, first and last": "2.7500, 2.5000",
        "held-out accuracy, first and last": "0.5000, 0.7500",
        "digest of the trained parameters": "`sha256:00`",
    }


def test_figures_of_a_short_journal_are_fewer():
    assert figures([]) == [("steps", 0)]
    one = {"event": "evaluated", "loss": 2.0, "bits_per_byte": None}
    assert figures([one])[1:] == [("held-out loss", "2.0000")]
    assert ("loss, first and last step", "not finite, not finite") in figures([{**STEP, "step": 1, "loss": None}])


def test_the_card_says_what_the_data_was():
    text = card(facts(data=Data(source={"a.jsonl": 1, "b.jsonl": 0.5}, context=512)))
    for row in (
        "| source | `a.jsonl` |",
        "| source, read 0.5 times an epoch | `b.jsonl` |",
        "| format | messages |",
        "| samples | 2000 |",
        "| samples left out | 3 |",
        "| tokens a row, at most | 512 |",
        "| samestep | 0.1.0 |",
        "| cpu in training | A\\|B |",
    ):
        assert row in text


def test_the_head_is_yaml_that_the_hub_reads():
    head = yaml.safe_load(card(facts(kind="adapter")).split("---\n")[1])
    assert head == {
        "library_name": "peft",
        "base_model": "org/base",
        "license": "other",
        "license_name": "see-base-model",
        "tags": ["samestep", "sft"],
    }


def test_a_model_of_new_weights_has_no_base():
    text = card(facts(base=None, model=Model()))
    assert "from new weights" in text and "The weights are new" in text and "base_model:" not in text
    assert "license" not in text.split("---\n")[1]


@pytest.mark.parametrize(
    ("kind", "objective", "loads"),
    [
        ("model", Sft(kind="sft"), "from transformers import AutoModelForCausalLM\n"),
        ("merged", Sft(kind="sft"), "from transformers import AutoModelForCausalLM\n"),
        ("adapter", Sft(kind="sft"), "from peft import AutoPeftModelForCausalLM\n"),
        ("adapter", Reward(kind="reward"), "from peft import AutoPeftModelForSequenceClassification\n"),
        ("model", Reward(kind="reward"), "from transformers import AutoModelForSequenceClassification\n"),
    ],
)
def test_the_card_shows_how_to_load_what_was_written(kind, objective, loads):
    assert loads in card(facts(kind=kind, objective=objective, model=Model(name="a/b", lora=Lora())))


@given(st.text(alphabet="`~\n |x", max_size=30))
def test_the_recipe_is_there_in_full_whatever_its_texts_hold(tmp_path_factory, prompt):
    wanted = facts(sample=Sample(prompt=prompt))
    fence, body = re.search(r"\n(`{3,})yaml\n(.*?)\n\1\n", card(wanted), re.DOTALL).groups()
    file = tmp_path_factory.mktemp("card") / "recipe.yaml"
    file.write_text(body)
    assert load(file) == wanted.recipe and fence not in body
