import pytest
import torch
from torch import nn

from samestep.model.task import Task
from samestep.recipe.schema import Recipe
from samestep.replica.job import Job
from samestep.replica.speak import answer

TEMPLATE = (
    "{% for m in messages %}<s> {{ m.role }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant{% endif %}"
)


@pytest.fixture
def origin(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def asked(write_corpus, tmp_path):
    """(formats, origin) -> what the model was asked, its draws and what is told of its answer."""

    def asked(formats, origin, seed=1, name="corpus"):
        seen = []

        def generate(tokens, count, temperature, generator):
            seen.extend([tokens, count, temperature, torch.rand(1, generator=generator).item()])
            return [7, 8]

        folders = [write_corpus(f"{name}-{number}", format, [3], [3]) for number, format in enumerate(formats)]
        recipe = Recipe(steps=1, seed=seed, sample={"tokens": 5, "temperature": 0.5})
        job = Job("train", recipe, tmp_path, folders, tmp_path, 1, 1)
        event = answer(job, Task(nn.Linear(1, 1), None, None, None, None, origin, None, generate), "w9 w10")
        return seen, event

    return asked


@pytest.mark.parametrize("formats", [["messages"], ["preference"], ["text", "messages"]])
def test_a_model_trained_on_chats_is_asked_through_its_template(asked, origin, formats):
    seen, event = asked(formats, origin)
    assert seen[:3] == [[1, 2, 9, 10, 1, 3], 5, 0.5]
    assert event == {"event": "sample", "prompt": "w9 w10", "text": "w7 w8"}


@pytest.mark.parametrize("formats", [["text"], ["prompt_completion"]])
def test_a_model_of_plain_text_goes_on_from_the_prompt(asked, origin, formats):
    assert asked(formats, origin)[0][0] == [9, 10]


def test_without_a_template_the_prompt_is_the_text(asked, origin):
    assert asked(["messages"], None)[0][0] == [9, 10]
    (origin / "chat_template.jinja").unlink()
    assert asked(["messages"], origin, name="other")[0][0] == [9, 10]


def test_what_is_drawn_follows_from_the_recipes_seed_alone(asked, origin):
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(ord(name))
        drawn.append(asked(["text"], origin, seed, name)[0][3])
    assert drawn[0] == drawn[1] != drawn[2]
