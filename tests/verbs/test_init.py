from pathlib import Path

import pytest

from samestep.errors import RecipeError
from samestep.model.folder import resolve
from samestep.recipe.load import load
from samestep.verbs.init import COLUMN, KINDS, init, lines, recipe

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_and_is_what_it_says(kind, tmp_path):
    loaded = load(init(kind, tmp_path / "new" / "recipe.yaml"))
    objective = {"lora": "sft", "pretrain": "causal"}.get(kind, kind)
    assert loaded.objective.kind == objective
    assert (loaded.model.lora is not None) == (kind in ("lora", "dpo"))
    assert loaded.model.family_used == (kind == "pretrain")


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_is_short_and_its_comment_stands_in_the_column(kind):
    for line in recipe(kind).splitlines():
        assert len(line) <= 110
        if "# " in line and not line.startswith("#"):
            assert line.index("# ") >= COLUMN


@pytest.mark.parametrize("kind", KINDS)
def test_what_must_be_set_is_in_capitals_and_fails_by_its_name(kind, tmp_path):
    loaded = load(init(kind, tmp_path / "recipe.yaml"))
    assert str(loaded.data.source).startswith("PATH-OF-YOUR-")
    if kind != "pretrain":
        with pytest.raises(RecipeError, match=r"model.path asks for .*PATH-OF-A-MODEL, which is no folder; name one"):
            resolve(loaded.model, tmp_path)


def test_a_file_that_exists_is_left_alone(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    with pytest.raises(RecipeError, match=r"init would write .*mine.yaml, which exists; choose another file with --to"):
        init("sft", file)
    assert file.read_text() == "mine"


def test_an_unknown_kind_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match=r"init knows no kind 'loar'; did you mean lora\?"):
        init("loar", tmp_path / "x.yaml")
    with pytest.raises(RecipeError, match="it has sft, lora, dpo, pretrain, reward"):
        init("", tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


def test_the_default_is_the_kinds_own_name(samestep, tmp_path):
    result = samestep("init", "dpo")
    assert result.code == 0 and "dpo.yaml is written: set what stands in capitals" in result.out
    assert (tmp_path / "dpo.yaml").read_text() == recipe("dpo")
    assert samestep("init", "dpo").code == 2
    assert lines(Path("dpo.yaml"))[0].endswith("`samestep check dpo.yaml`")


@pytest.mark.parametrize(("name", "objective"), [("sft", "sft"), ("lora", "sft"), ("dpo", "dpo"), ("reward", "reward")])
def test_the_recipes_for_fetched_files_load_and_name_where_fetch_puts_them(name, objective):
    from samestep.verbs.fetch import ITEMS

    loaded = load(ROOT / "recipes" / f"{name}.yaml")
    assert loaded.objective.kind == objective
    data = ITEMS["chats" if objective == "sft" else "pairs"].target
    assert (loaded.model.path, loaded.data.source) == (f"../{ITEMS['smollm2'].target}", f"../{data}")
    assert loaded.lanes >= 4  # law 1 is shown with up to 4 replicas
