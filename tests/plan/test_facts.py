"""Shapes of models, and what they count."""

import json

import pytest

from samestep.errors import RecipeError
from samestep.model import gpt
from samestep.plan import facts
from samestep.recipe.schema import Model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}


def test_of_published_models_the_parameters_are_the_published_ones():
    assert facts.of_config(LLAMA, "llama").parameters == 8_030_261_248
    gpt2 = facts.of_config(GPT2 | {"tie_word_embeddings": True}, "gpt2")
    assert gpt2.parameters == pytest.approx(124.4e6, rel=0.002) and not gpt2.gated and gpt2.positions == 1024


@pytest.mark.parametrize("model", [Model(), Model(layers=2, width=64, heads=2, vocabulary=512, tied=False)])
def test_of_the_built_in_model_every_parameter_is_counted(model, tmp_path):
    shape = gpt.Shape(
        layers=model.layers,
        width=model.width,
        heads=model.heads or model.width // 64,
        vocabulary=model.vocabulary,
        context=16,
        tied=model.tied,
    )
    built = sum(parameter.numel() for parameter in gpt.GPT(shape).parameters())
    assert facts.of_model(model, tmp_path).parameters == built


def test_a_recipe_that_names_a_config_is_read_beside_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert facts.of_model(Model(config="config.json"), tmp_path).key_heads == 8


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LLAMA | {"num_local_experts": 8}, "is a mixture of experts, which plan cannot do yet"),
        ({"model_type": "llama"}, "does not say num_hidden_layers, which plan needs"),
    ],
)
def test_what_cannot_be_planned_is_refused(config, says):
    with pytest.raises(RecipeError, match=says):
        facts.of_config(config, "config.json")


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is no JSON"), ("[]", "is no JSON object"), (None, "cannot be read: No such file")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, says):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RecipeError, match=says):
        facts.of_file(file)


def test_encoders_predict_what_is_masked():
    bert = facts.of_config(GPT2 | {"model_type": "bert"}, "bert")
    assert not bert.causal and bert.predicted == 0.15
