"""What is said of a recipe that is wrong, and where; and that what is written is read back."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import RecipeError
from samestep.recipe.load import dump, load
from samestep.recipe.machines import Run
from samestep.recipe.schema import Batch, Data, Model, Optimizer, Recipe, Sample, Sync

RECIPE = """\
seed: 1
steps: 300
lanes: 4
model:
  width: 128
  layers: 2
batch: {micro_batch: 2}
optimizer:
  learning_rate: 1e-3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "recipe.yaml"


def problems(file: Path, text: str, *overrides: str) -> list[str]:
    """What `load` says of `text`, a line each, with the folder left out."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(file, overrides)
    return str(caught.value).replace(f"{file.parent}/", "").split("\n")


def recipe(file: Path, text: str, *overrides: str) -> Recipe:
    file.write_text(text, encoding="utf-8")
    return load(file, overrides)


def test_keys_that_are_not_written_keep_their_defaults(file: Path) -> None:
    read = recipe(file, RECIPE)
    assert read == Recipe(
        seed=1, steps=300, lanes=4, model=Model(width=128, layers=2), batch=Batch(micro_batch=2), optimizer=Optimizer()
    )
    assert read.optimizer.learning_rate == 0.001


sections = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "lanes": st.integers(5, 10**12),
        "model": st.builds(Model, path=st.none() | st.text(), dtype=st.sampled_from(["bfloat16", "float32"])),
        "data": st.builds(Data, source=st.text(), text_field=st.sampled_from(["no", "1e-3", "~", "1:30", "x: y"])),
        "optimizer": st.builds(
            Optimizer,
            learning_rate=st.floats(0, allow_infinity=False),
            clip=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
        ),
        "sync": st.builds(Sync, strategy=st.sampled_from(["exact", "fast"])),
        "sample": st.builds(Sample, prompt=st.none() | st.text()),
        "run": st.builds(Run, replicas=st.integers(1, 5), cache=st.none() | st.text()),
    }
)
lengths = st.sampled_from(["steps", "tokens", "epochs"]).flatmap(lambda key: st.tuples(st.just(key), st.integers(1)))


@settings(deadline=None)
@given(sections, lengths)
def test_what_is_dumped_is_loaded_back(file: Path, keys: dict[str, Any], length: tuple[str, int]) -> None:
    whole = Recipe(**keys, **{length[0]: length[1]})
    assert recipe(file, dump(whole)) == whole


def test_a_dump_has_every_key_in_the_order_of_the_schema() -> None:
    keys = [line.split(":")[0] for line in dump(Recipe(steps=1)).splitlines() if not line.startswith(" ")]
    assert keys == list(Recipe.model_fields)


def test_unknown_keys_name_the_nearest_key_and_their_own_place(file: Path) -> None:
    said = problems(file, "steps: 3\nmodel:\n  layers: 2\n  widht: 3\nbatches: {}\nlearning_rate: 1\n")
    assert said == [
        "recipe.yaml:4:3: model.widht is not a known key; did you mean width?",
        "recipe.yaml:5:1: batches is not a known key; did you mean batch?",
        "recipe.yaml:6:1: learning_rate is not a known key; did you mean optimizer.learning_rate?",
    ]


def test_an_unknown_key_like_no_other_is_answered_with_the_keys_there_are(file: Path) -> None:
    (said,) = problems(file, "steps: 3\nbatch: {qqq: 1}\n")
    assert said == "recipe.yaml:2:9: batch.qqq is not a known key; the keys here are micro_batch, accumulate"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("batch: {micro_batch: four}", "1:22: batch.micro_batch is 'four', but must be an integer; the default is 4"),
        ("batch: {micro_batch: '4'}", "1:22: batch.micro_batch is '4', but must be an integer; the default is 4"),
        ("batch: {micro_batch: true}", "1:22: batch.micro_batch is true, but must be an integer; the default is 4"),
        ("batch: {micro_batch: 0}", "1:22: batch.micro_batch is 0, but must be at least 1; the default is 4"),
        ("batch: {micro_batch: [4]}", "1:22: batch.micro_batch is a list, but must be an integer; the default is 4"),
        ("batch: {micro_batch:}", "1:21: batch.micro_batch is null, but must be an integer; the default is 4"),
        ("batch:", "1:7: batch is null, but must be a section; give it keys or remove it"),
        ("batch: 4", "1:8: batch is 4, but must be a section; give it keys or remove it"),
        ("data: {packing: yes}", "1:17: data.packing is 'yes', but must be true or false; the default is true"),
        ("data: {source: 12}",
         "1:16: data.source is 12, but must be a path, or a section of paths with weights; the default is "
         "'python-stdlib'"),
        ("optimizer: {clip: 0}", "1:19: optimizer.clip is 0, but must be above 0.0; the default is 1.0"),
        ("optimizer: {beta1: 1}", "1:20: optimizer.beta1 is 1, but must be below 1.0; the default is 0.9"),
        ("optimizer: {final: 2}", "1:20: optimizer.final is 2, but must be at most 1.0; the default is 0.1"),
        ("optimizer: {beta1: {}}", "1:20: optimizer.beta1 is a section, but must be a number; the default is 0.9"),
        ("optimizer: {learning_rate: 1e999}",
         "1:28: optimizer.learning_rate is inf, but must be a finite number; the default is 0.001"),
        ("sync: {strategy: exat}",
         "1:18: sync.strategy is 'exat', but must be 'exact', 'fast', 'diloco' or 'auto'; the default is 'exact'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_it_must_be(file: Path, written: str, said: str) -> None:
    assert problems(file, f"{written}\nsteps: 3\n") == [f"recipe.yaml:{said}"]


def test_a_dtype_that_is_refused_says_why(file: Path) -> None:
    (said,) = problems(file, "steps: 3\nmodel: {dtype: float16}")
    assert said.startswith("recipe.yaml:2:16: model.dtype is 'float16', but float16 needs a loss scale")


@settings(deadline=None)
@given(st.sampled_from([None, True, "x", -1, 2**70, 0.5, -0.5, [], {}, {"a": 1}]), st.data())
def test_no_message_is_left_in_the_words_of_pydantic(file: Path, value: object, data: st.DataObject) -> None:
    defaults = Recipe.model_construct().model_dump()
    sections = {name: list(keys) for name, keys in defaults.items() if isinstance(keys, dict)}
    section = data.draw(st.sampled_from(list(sections)))
    key = data.draw(st.sampled_from(sections[section]))
    written = str(value).replace("None", "null").replace("'a'", "a")
    try:
        recipe(file, f"steps: 3\n{section}:\n  {key}: {written}\n")
    except RecipeError as error:
        assert str(error).startswith(f"{file}:3:")
        assert not any(word in str(error) for word in ("Input", "Value error", "\n"))


def test_problems_come_in_the_order_of_the_file_and_then_of_the_command_line(file: Path) -> None:
    said = problems(file, "run: {replicas: 0}\nsteps: x\nmodel: {a: 1}\nrun: {}\n", "lanes=x", "seed=-1")
    places = [line.split(": ")[0] for line in said]
    assert places == [*(f"recipe.yaml:{place}" for place in ("1:17", "2:8", "3:9", "4:1")), *["command line"] * 2]


def test_a_key_set_twice_names_both_lines(file: Path) -> None:
    said = problems(file, "steps: 3\nmodel:\n  width: 64\n  width: 128\n")
    assert said == ["recipe.yaml:4:3: model.width is set twice, first in line 3; keep one"]


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("lanes: 2\nsteps: 3\nrun: {replicas: 3}\n", "1:1"),
        ("steps: 3\nrun: {replicas: 9}\n", "2:7"),
        ("steps: 3\ntokens: 5\n", "1:1"),
        ("lanes: 2\n", "1:1"),
        ("steps: 3\nmodel: {layers: 1, width: 100, heads: 3}\n", "2:32"),
        ("steps: 3\nmodel: {path: a, name: b}\n", "2:9"),
        ("steps: 3\nrecover: {recompute_every: 9}\nsync: {strategy: fast}\n", "2:11"),
        ("steps: 3\nrun: {transport: sockets}\nsync: {strategy: fast}\n", "2:7"),
        ("steps: 3\ncompute: {shard: full}\n", "2:11"),
        ("steps: 3\ncompute: {shard: full, shards: 3}\n", "2:24"),
        ("steps: 3\ncompute: {shard: tensor, shards: 2, device: cuda}\n", "2:11"),
        ("steps: 3\ncompute: {shard: tensor, shards: 2}\nsync: {wire: int8}\n", "2:11"),
    ],
)
def test_keys_at_odds_are_told_at_one_that_is_written(file: Path, written: str, place: str) -> None:
    (said,) = problems(file, written)
    assert said.startswith(f"recipe.yaml:{place}: ")


def test_keys_at_odds_are_told_of_the_command_line_where_one_was_typed(file: Path) -> None:
    (said,) = problems(file, RECIPE, "run.replicas=5")
    assert said.startswith("command line: run.replicas is 5 but lanes is 4")


def test_overrides_are_yaml_and_come_after_the_file(file: Path) -> None:
    read = recipe(file, RECIPE, "optimizer.clip=null", "batch={accumulate: 3}", "seed=1_000", "sample.prompt='12'")
    assert read.optimizer.clip is None
    assert read.optimizer.learning_rate == 0.001
    assert read.batch == Batch(accumulate=3)
    assert (read.seed, read.sample.prompt) == (1000, "12")


@pytest.mark.parametrize("length", ["steps", "tokens", "epochs"])
def test_an_override_of_the_length_takes_the_place_of_the_files(file: Path, length: str) -> None:
    read = recipe(file, RECIPE, f"{length}=1e6")
    given = {key: getattr(read, key) for key in ("steps", "tokens", "epochs")}
    assert given == {"steps": None, "tokens": None, "epochs": None, length: 1_000_000}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["steps=four"], "command line: steps is 'four', but must be an integer"),
        (["model.widht=4"], "command line: model.widht is not a known key; did you mean width?"),
        (["modle.width=4"], "command line: modle is not a known key; did you mean model?"),
        (["steps.x=4"], "command line: steps.x cannot be set: steps is 300"),
        (["steps=4", "steps=5"], "command line: steps is set twice; keep one"),
        (["model.layers=4", "model={width: 64}"], "command line: model is set twice; keep one"),
        (["steps=4", "epochs=5"],
         "command line: the run needs exactly one of steps, tokens and epochs, but steps and epochs are set; keep one"),
        (["steps"], "command line: 'steps' is not an override; write section.key=value, such as steps=300"),
        (["steps="], "command line: 'steps=' is not an override; write section.key=value, such as steps=300"),
        (["model..heads=4"],
         "command line: 'model..heads=4' is not an override; write section.key=value, such as steps=300"),
        (["model={"], "command line: not YAML in '{': while parsing a flow node, expected the node content, "
                      "but found '<stream end>'"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_told_of_the_command_line(file: Path, overrides: list[str], said: str) -> None:
    assert problems(file, RECIPE, *overrides) == [said]


def test_a_missing_recipe_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"tny\.yaml: there is no such recipe; did you mean tiny\.yaml\?"):
        load(tmp_path / "tny.yaml")
    with pytest.raises(RecipeError, match="there is no such recipe; give the path"):
        load(tmp_path / "none" / "x.yaml")


def test_a_folder_names_a_recipe_in_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder, but a recipe is a YAML file; give the path"):
        load(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"is a folder, .* did you mean .*/tiny\.yaml\?"):
        load(tmp_path)


def test_a_path_through_a_file_is_one_line(file: Path) -> None:
    file.write_text(RECIPE)
    with pytest.raises(RecipeError, match="cannot be read: Not a directory"):
        load(file / "x.yaml")


def test_bytes_that_are_not_utf8_are_named_with_their_line(file: Path) -> None:
    file.write_bytes(b"steps: 3\n# \xff\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:2: byte 0xff is not UTF-8"):
        load(file)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "recipe.yaml is empty; a recipe needs at least a length, such as steps: 300"),
        ("# nothing\n", "recipe.yaml is empty; a recipe needs at least a length, such as steps: 300"),
        ("- a\n", "recipe.yaml:1:1: this is a list, but a recipe is `key: value` lines"),
        ("steps\n", "recipe.yaml:1:1: this is 'steps', but a recipe is `key: value` lines"),
    ],
)
def test_a_file_without_keys_is_told_what_a_recipe_is(file: Path, written: str, said: str) -> None:
    assert problems(file, written) == [said]


@settings(deadline=None)
@given(st.text() | st.text(alphabet="[]{}:,-#&*!|>?'\"\\~ \n\tab1._"))
def test_any_text_is_a_recipe_or_lines_that_begin_with_its_name(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    try:
        load(file)
    except RecipeError as error:
        assert all(line.startswith(str(file)) for line in str(error).split("\n"))


def test_reading_a_recipe_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, samestep.recipe.load; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("{kind: sft, beta: 1}", "2:24: objective.beta is a key of kind dpo, but objective.kind is sft; remove it"),
        ("{kind: dpo, beta: -1}", "2:30: objective.beta is -1, but must be above 0.0; the default is 0.1"),
        ("{kind: dpo, bata: 1}", "2:24: objective.bata is not a known key; did you mean beta?"),
        ("{kind: orpo}", "2:12: objective is a section, but its kind must be one of 'causal', 'sft', 'dpo', 'reward'"),
        ("{}", "2:12: objective is a section, but needs a kind: causal, sft, dpo or reward"),
        (
            "{kind: dpo, loss: ipo, label_smoothing: 0.1}",
            "2:35: label_smoothing is of the sigmoid loss; ipo has none",
        ),
    ],
)
def test_the_keys_of_an_objective_follow_its_kind(file: Path, objective: str, said: str) -> None:
    assert problems(file, f"steps: 3\nobjective: {objective}\n") == [f"recipe.yaml:{said}"]


def test_the_keys_of_a_section_that_is_off_by_default_are_known(file: Path) -> None:
    said = problems(file, "steps: 3\nmodel: {lora: {rnk: 4}}\n")
    assert said == ["recipe.yaml:2:16: model.lora.rnk is not a known key; did you mean rank?"]


@pytest.mark.parametrize("weight", ["0", "-1", "x", "true", ".inf"])
def test_every_source_has_a_weight_above_zero(file: Path, weight: str) -> None:
    (said,) = problems(file, f"steps: 3\ndata: {{source: {{a: 1, b: {weight}}}}}\n")
    assert "must give every source a weight above 0, as in b: 1" in said


def test_one_source_is_read_once_an_epoch(file: Path) -> None:
    assert recipe(file, "steps: 3\ndata: {source: a}\n").data.weights == {"a": 1.0}
    assert recipe(file, "steps: 3\ndata: {source: {a: 1, b: 0.5}}\n").data.weights == {"a": 1, "b": 0.5}


HOSTS = """
steps: 3
run:
  hosts:
    h0: {start: ip netns exec h0, address: 10.77.0.1}
    h1: {address: 'fd00::2', replicas: 2}
"""


def test_a_run_on_hosts_has_as_many_replicas_as_they_have_places(file: Path) -> None:
    read = recipe(file, HOSTS)
    assert read.run.replicas == 3 and list(read.run.hosts or {}) == ["h0", "h1"]
    assert recipe(file, HOSTS, "run.replicas=2").run.replicas == 2
    assert recipe(file, dump(read)) == read


def test_a_run_cannot_begin_with_more_replicas_than_it_has(file: Path) -> None:
    assert recipe(file, "steps: 3\nrun: {replicas: 2, minimum: 2}\n").run.minimum == 2
    (found,) = problems(file, "steps: 3\nrun: {replicas: 2, minimum: 3}\n")
    assert found == "recipe.yaml:2:20: minimum is 3, but replicas is 2; lower the one, or raise the other"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{h0: {}}", "2:15: run.hosts.h0 has no address, which it needs; write it there"),
        ("{h0: {address: 0.0.0.0}}",
         "2:29: run.hosts.h0.address is '0.0.0.0', but must be the IP address at which the other hosts reach it, such "
         "as 10.77.0.1"),
        ("{h0: {address: some.name}}",
         "2:29: run.hosts.h0.address is 'some.name', but must be the IP address at which the other hosts reach it, "
         "such as 10.77.0.1"),
        ("{h0: {address: 10.0.0.1, start: a 'b}}",
         "2:46: run.hosts.h0.start is \"a 'b\", but must be words as in a shell; close the quote; the default is ''"),
        ("{h0: {address: 10.0.0.1, adress: 1}}", "2:39: run.hosts.h0.adress is not a known key; did you mean address?"),
        ("{h0: {address: 10.0.0.1, replicas: 0}}",
         "2:49: run.hosts.h0.replicas is 0, but must be at least 1; the default is 1"),
        ("{h0: 4}", "2:19: run.hosts.h0 is 4, but must be a section; give it keys or remove it"),
        ("4", "2:14: run.hosts is 4, but must be a section of sections by name, such as h0: {address: 10.77.0.1}"),
        ("{}", "2:7: hosts names no host, as in hosts: {h0: {address: 10.77.0.1}}"),
        ("{a b: {address: 10.0.0.1}}",
         "2:7: 'a b' is no name of a host; use letters, digits and . _ -, as in hosts: {h0: {address: 10.77.0.1}}"),
        ("{h0: {address: 10.0.0.1}, h1: {address: 10.0.0.1}}",
         "2:45: hosts h0 and h1 have one address, 10.0.0.1; give each its own, or keep one"),
        ("{h0: {address: 10.0.0.1}}, replicas: 2",
         "2:41: replicas is 2, but the hosts have room for 1; lower it, or raise theirs"),
        ("{h0: {address: 10.0.0.1, replicas: 9}}",
         "2:7: run.replicas is 9 but lanes is 8, the most replicas that can share a step; lower replicas or raise "
         "lanes (lanes change the model)"),
        ("{h0: {address: 10.0.0.1}}}\nsync: {strategy: fast",
         "2:7: run.hosts joins replicas by sockets, which sync.strategy fast does not use; use exact"),
    ],
)  # fmt: skip
def test_hosts_that_make_no_sense_are_refused_with_their_place(file: Path, written: str, said: str) -> None:
    (found,) = problems(file, f"steps: 3\nrun: {{hosts: {written}}}\n")
    assert found == f"recipe.yaml:{said}"


def test_new_weights_travel_as_what_is_added_up_unless_said(file: Path) -> None:
    assert recipe(file, "steps: 3\nsync: {wire: int4}\n").sync.told == "int4"
    assert recipe(file, "steps: 3\nsync: {wire: int4, weights: float32}\n").sync.told == "float32"
    assert not recipe(file, "steps: 3\nsync: {weights: int4}\n").sync.alone


@pytest.mark.parametrize(("keys", "place"), [("wire: int8", "2:24"), ("weights: int4", "2:24")])
def test_fast_adds_up_in_float32_only(file: Path, keys: str, place: str) -> None:
    (said,) = problems(file, f"steps: 3\nsync: {{strategy: fast, {keys}}}\n")
    assert "fast adds up in float32, but wire is" in said and said.startswith(f"recipe.yaml:{place}")
