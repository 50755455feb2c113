"""samestep kubernetes: golden files, what is refused, and YAML that every reader takes for the same."""

from pathlib import Path

import pytest
import yaml

from samestep.errors import RecipeError
from samestep.launch.kubernetes import KINDS
from samestep.recipe.load import load
from samestep.verbs.kubernetes import Asked, as_dict, kubernetes, lines

GOLDEN = Path(__file__).parent / "golden"
IMAGE = "registry.example/samestep:0.1.0"


def printed(path, *changes, **asked):
    return kubernetes(path, changes, Asked(**{"image": IMAGE} | asked))


def text(*given, **asked):
    return "\n".join(lines(printed(*given, **asked))) + "\n"


def refused(path, *changes, **asked):
    with pytest.raises(RecipeError) as caught:
        printed(path, *changes, **asked)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_printed_is_what_was_looked_at(kind, tiny):
    """Written by: samestep kubernetes recipes/tiny.yaml --replicas 4 --gpus 1 --save-seconds 12 --kind ..."""
    found = text(tiny, "run.replicas=4", kind=kind, gpus=1, save_seconds=12)
    assert found == (GOLDEN / f"{kind}.yaml").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_yaml_says_what_the_json_says(kind, tiny):
    selector = ["pool=1e3", "spot=y", "zone=0x10", "gpu="]
    found = printed(tiny, kind=kind, selector=selector, secret="on-off", storage_class="no")
    assert list(yaml.safe_load_all("\n".join(lines(found)))) == as_dict(found)["items"]
    assert 'pool: "1e3"' in "\n".join(lines(found)) and 'spot: "y"' in "\n".join(lines(found))


def test_the_recipe_in_the_container_is_the_recipe(tiny, tmp_path):
    (config,) = [each for each in printed(tiny, "steps=5").manifests if each["kind"] == "ConfigMap"]
    inside = tmp_path / "recipe.yaml"
    inside.write_text(config["data"]["recipe.yaml"])
    here, there = load(tiny, ["steps=5"]), load(inside)
    assert there.run.cache == "/run/cache"
    assert there.model_copy(update={"run": here.run}) == here


def test_hosts_of_this_machine_stay_here(tiny):
    found = printed(tiny, "run.hosts={a: {address: 10.0.0.1, replicas: 2}}")
    assert "hosts: null" in found.manifests[0]["data"]["recipe.yaml"] and found.options.replicas == 2


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("data.source=../data/chats.jsonl", "data.source"),
        ("data.source=/home/me/chats.jsonl", "data.source"),
        ("data.source=/run/../etc", "data.source"),
        ("data.source={python-stdlib: 1, texts/: 1}", "data.source"),
        ("data.tokenizer=./tokenizer.json", "data.tokenizer"),
        ("run.cache=~/cache", "run.cache"),
        ("run.alternate=/mnt/other", "run.alternate"),
    ],
)
def test_a_path_that_no_container_has_is_refused(change, key, tiny):
    said = refused(tiny, change)
    assert said.startswith(f"{key} ") and "\n" not in said
    assert "which no container has; put it on the volume and name its place there" in said and f"{key}=/run/" in said


@pytest.mark.parametrize(
    "source", ["python-stdlib", "s3://bucket/texts", "/run/data/texts", "{/run/a: 1, s3://b/c: 2}"]
)
def test_what_a_container_has_is_taken(source, tiny):
    assert printed(tiny, f"data.source={source}").manifests


def test_each_misplaced_path_has_a_line(tiny):
    said = refused(tiny, "data.source={a.jsonl: 1, b.jsonl: 1}", "run.alternate=x")
    assert [line.split()[1] for line in said.splitlines()] == ["a.jsonl", "b.jsonl", "x"]


@pytest.mark.parametrize("name", ["Tiny", "tiny_1", "1tiny", "tiny-", "-", "ti ny", "tiny\n", "", "a" * 64])
def test_a_bad_name_is_refused_with_a_good_one(name, tiny):
    said = refused(tiny, name=name)
    assert "--name is " in said and "(RFC 1123)" in said
    assert printed(tiny, name=said.split("take --name ")[1].split(",")[0])


def test_the_recipes_own_name_is_checked_too(tiny, tmp_path):
    copy = tmp_path / "My_Recipe.yaml"
    copy.write_text(tiny.read_text())
    assert "(the recipe's own name)" in refused(copy) and "take --name my-recipe, say" in refused(copy)


def test_a_name_that_makes_pods_names_too_long_is_refused(tiny):
    assert "has 50 characters, but pods are named after it; take 48 at most" in refused(tiny, name="a" * 50)
    assert printed(tiny, name="a" * 48)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"image": None}, "--image is missing; name the image that holds samestep"),
        ({"image": ""}, "--image is missing"),
        ({"image": "a b"}, "--image is 'a b', but must be a name"),
        ({"kind": "jobsett"}, "--kind is 'jobsett', but must be jobset or trainjob; did you mean jobset?"),
        ({"cpus": "0"}, "--cpus is '0', but must be a number"),
        ({"memory": "8GB"}, "--memory is '8GB', but must be an amount"),
        ({"size": "big"}, "--size is 'big', but must be an amount"),
        ({"namespace": "Team"}, "--namespace is 'Team'"),
        ({"claim": "a.b"}, "--claim is 'a.b'"),
        ({"account": "A"}, "--account is 'A'"),
        ({"bucket": "s3://b"}, "Mountpoint for S3 neither appends nor renames"),
        ({"bucket": "gs://bucket", "claim": "c"}, "keep one"),
        ({"selector": ["gpu"]}, "--node-selector is 'gpu', but must be LABEL=VALUE"),
        ({"selector": ["a b=c"]}, "--node-selector is 'a b=c'"),
    ],
)
def test_options_that_cannot_be_are_refused(asked, says, tiny):
    said = refused(tiny, **asked)
    assert says in said and "\n" not in said


def test_more_replicas_than_lanes_are_refused(samestep, tiny):
    result = samestep("kubernetes", tiny, "--image", IMAGE, "--replicas", 9)
    assert result.code == 2 and "run.replicas is 9 but lanes is 8" in result.err and not result.out


@pytest.mark.parametrize("strategy", ["fast", "auto"])
def test_strategies_that_env_does_not_run_are_refused(strategy, tiny):
    assert f"sync.strategy {strategy} is for --engine local" in refused(tiny, f"sync.strategy={strategy}")


def test_a_model_whose_size_is_not_known_here_needs_a_figure(tiny):
    model = "model={path: /run/models/smollm2}"
    assert "--memory is missing, and cannot be told from model.path" in refused(tiny, model)
    found = printed(tiny, model, memory="4Gi").options
    assert (found.memory, found.grace) == (4 << 30, 30 + 172)  # twice 4 GiB at 50 MB/s


def test_a_measured_save_decides_the_grace(tiny):
    assert printed(tiny, save_seconds=12).options.grace == 54


def test_json_is_one_object_that_kubectl_takes(samestep, tiny):
    result = samestep("kubernetes", tiny, "--image", IMAGE, "--json")
    assert result.code == 0 and (result.json["kind"], result.json["apiVersion"]) == ("List", "v1")
    assert result.json == as_dict(printed(tiny))


def test_options_of_the_command_line_reach_the_manifests(samestep, tiny):
    given = {"cpus": 4, "memory": "8Gi", "gpus": 1, "save-seconds": 9, "restarts": 1, "claim": "c", "size": "1Gi"}
    given |= {"storage-class": "s", "secret": "k", "service-account": "a", "node-selector": "pool=x", "namespace": "n"}
    words = [word for key, value in given.items() for word in (f"--{key}", value)]
    result = samestep(
        "kubernetes", tiny, "steps=3", "--image", IMAGE, "--replicas", 4, "--name", "mine", *words, "--json"
    )
    keys = {"cpus": "4", "memory": "8Gi", "gpus": 1, "save_seconds": 9.0, "restarts": 1, "claim": "c", "size": "1Gi"}
    keys |= {"storage_class": "s", "secret": "k", "account": "a", "selector": ["pool=x"], "namespace": "n"}
    assert result.json == as_dict(printed(tiny, "steps=3", "run.replicas=4", name="mine", **keys))
