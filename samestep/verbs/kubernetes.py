"""samestep kubernetes: prints the manifests that run a recipe on a cluster. Nothing is sent to one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from samestep.errors import RecipeError
from samestep.launch import demand
from samestep.launch.kubernetes import CACHE, KINDS, VOLUME, Manifest, Options
from samestep.recipe.load import did_you_mean, dump, load
from samestep.recipe.schema import Recipe

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1123, and a letter first, as the name of a Service must have
LONGEST = 63  # characters of a name, that of a pod as well
TAIL = "-node-0-{index}-abcde"  # what a pod's name has behind the JobSet's
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
NEEDS = {"jobset": "JobSet 0.10 or newer", "trainjob": "the Kubeflow Trainer with JobSet 0.10 or newer"}
PLAIN = re.compile(
    r"[A-Za-z/][A-Za-z0-9_./ -]{2,}"
)  # text that no reader of YAML, 1.1 or 1.2, takes for something else


@dataclass(frozen=True)
class Asked:
    """The command line, beside the recipe. What is None or empty follows from the recipe."""

    image: str | None = None
    name: str | None = None
    kind: str = "jobset"
    namespace: str | None = None
    cpus: str | None = None
    memory: str | None = None
    gpus: int = 0
    save_seconds: float | None = None
    restarts: int = 3
    claim: str | None = None
    size: str = "100Gi"
    storage_class: str | None = None
    bucket: str | None = None
    secret: str | None = None
    account: str | None = None
    selector: Sequence[str] = ()


@dataclass(frozen=True)
class Printed:
    kind: str
    options: Options
    manifests: list[Manifest]


def kubernetes(path: Path, overrides: Sequence[str], asked: Asked) -> Printed:
    """Raises RecipeError, all in one line each: for the recipe, a name, an amount, or a path that no container has."""
    recipe = _contained(load(path, overrides))
    if asked.kind not in KINDS:
        raise RecipeError(
            f"--kind is {asked.kind!r}, but must be {' or '.join(KINDS)}{did_you_mean(asked.kind, KINDS)}"
        )
    options = _options(recipe, path.stem, asked)
    return Printed(asked.kind, options, KINDS[asked.kind](dump(recipe), options))


def as_dict(printed: Printed) -> dict[str, Any]:
    """One object that `kubectl apply -f` takes as well."""
    return {"apiVersion": "v1", "kind": "List", "items": printed.manifests}


def lines(printed: Printed) -> list[str]:
    """YAML, a document a manifest."""
    documents = (_written(manifest).rstrip("\n") for manifest in printed.manifests)
    return [*_head(printed), *(line for document in documents for line in ("---", document))]


def _head(printed: Printed) -> list[str]:
    options = printed.options
    kept = "but not the run folder" if options.claim or options.bucket else "and the run folder with it"
    told = {
        "kubectl apply -f FILE": f"starts it; the cluster needs {NEEDS[printed.kind]}",
        f"kubectl delete {printed.kind} {options.name}": "stops it with a checkpoint; apply then goes on",
        "kubectl delete -f FILE": f"removes all of it, {kept}",
    }
    width = max(map(len, told))
    title = f"# {options.name}: {options.replicas} replicas, a pod each"
    return [title, *(f"#   {command.ljust(width)}  {what}" for command, what in told.items())]


def _contained(recipe: Recipe) -> Recipe:
    """With nothing of this machine in it. Its hosts are of this machine; pods have others."""
    recipe.refuse_shards("samestep kubernetes")
    if recipe.sync.strategy in ("auto", "fast"):
        raise RecipeError(
            f"sync.strategy {recipe.sync.strategy} is for --engine local, and pods run --engine env; name another one "
            f"(samestep pilot measures which)"
        )
    wrong = [f"{key} {place}" for key, place in _paths(recipe) if not _there(place)]
    if wrong:
        raise RecipeError("\n".join(map(_misplaced, wrong)))
    run = {"hosts": None, "cache": recipe.run.cache or CACHE}
    return recipe.model_copy(update={"run": recipe.run.model_copy(update=run)})


def _paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Each key that may name a file, with what it names."""
    yield from (("data.source", source) for source in recipe.data.weights)
    model, data, run = recipe.model, recipe.data, recipe.run
    named = {"data.tokenizer": data.tokenizer, "model.path": model.path, "model.config": model.config}
    named |= {"run.cache": run.cache, "run.alternate": run.alternate}
    yield from ((key, place) for key, place in named.items() if place is not None)


def _there(place: str) -> bool:
    """Whether a container has it: of the standard library, at an address, or on the volume."""
    path = PurePosixPath(place)
    stdlib = path.parts[:1] == ("python-stdlib",)
    return (
        stdlib
        or "://" in place
        or (path.is_relative_to(VOLUME) and path != PurePosixPath(VOLUME) and ".." not in path.parts)
    )


def _misplaced(named: str) -> str:
    key, _, place = named.partition(" ")
    there = f"{VOLUME}/{PurePosixPath(place).name or 'data'}"
    return (
        f"{key} {place} is a path of this machine, which no container has; put it on the volume and name its place "
        f"there: {key}={there}"
    )


def _options(recipe: Recipe, stem: str, asked: Asked) -> Options:
    if not asked.image:
        raise RecipeError(
            "--image is missing; name the image that holds samestep (the Dockerfile of this project makes one)"
        )
    if not IMAGE.fullmatch(asked.image):
        raise RecipeError(f"--image is {asked.image!r}, but must be a name such as registry.example/samestep:0.1.0")
    memory = _memory(recipe, asked)
    save = demand.saving(memory) if asked.save_seconds is None else asked.save_seconds
    demand.quantity(asked.size, "--size")
    names = ("namespace", "claim", "storage_class", "secret", "account")
    given = {key: _label(getattr(asked, key), f"--{key.replace('_', '-')}") for key in names if getattr(asked, key)}
    return Options(
        name=_named(asked.name, stem, recipe.run.replicas),
        image=asked.image,
        replicas=recipe.run.replicas,
        cpus=_processors(recipe, asked),
        memory=memory,
        grace=demand.grace(save),
        gpus=asked.gpus or int(recipe.compute.device == "cuda"),
        restarts=asked.restarts,
        size=asked.size,
        bucket=_bucket(asked),
        selector=_selector(asked.selector),
        **given,
    )


def _named(name: str | None, stem: str, replicas: int) -> str:
    asked = _label(stem if name is None else name, "--name", " (the recipe's own name)" if name is None else "")
    room = LONGEST - len(TAIL.format(index=replicas - 1))
    if len(asked) > room:
        raise RecipeError(
            f"--name {asked} has {len(asked)} characters, but pods are named after it; take {room} at most"
        )
    return asked


def _label(name: str, option: str, which: str = "") -> str:
    if not LABEL.fullmatch(name) or len(name) > LONGEST:
        fit = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:40].rstrip("-") or "run-1"
        raise RecipeError(
            f"{option} is {name!r}{which}, but must be small letters, digits and -, a letter first and no - last, as "
            f"Kubernetes asks (RFC 1123); take {option} {fit}, say"
        )
    return name


def _memory(recipe: Recipe, asked: Asked) -> int:
    if asked.memory:
        return demand.quantity(asked.memory, "--memory")
    model = recipe.model
    if not model.family_used:
        where = next(key for key in ("path", "name", "config") if getattr(model, key) is not None)
        raise RecipeError(
            f"--memory is missing, and cannot be told from model.{where}, which is not looked at here; give the most "
            f"that a replica takes, such as --memory 16Gi"
        )
    return demand.memory(recipe)


def _processors(recipe: Recipe, asked: Asked) -> str:
    if asked.cpus and not re.fullmatch(r"[0-9]*[1-9][0-9]*(m|\.[0-9]+)?", asked.cpus):
        raise RecipeError(f"--cpus is {asked.cpus!r}, but must be a number such as 4, or 500m for half of one")
    return asked.cpus or demand.processors(recipe)


def _bucket(asked: Asked) -> str | None:
    if asked.bucket is None:
        return None
    if asked.claim:
        raise RecipeError("--claim and --bucket both say where the run folder is; keep one")
    found = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])/?", asked.bucket)
    if found is None:
        raise RecipeError(
            f"--bucket is {asked.bucket!r}, but must be gs://NAME, mounted by GKE's driver; Mountpoint for S3 neither "
            f"appends nor renames, which a run folder needs: claim a file system over the bucket with --storage-class"
        )
    return found[1]


def _selector(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        name = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
        if not equals or not re.fullmatch(rf"([a-z0-9.-]+/)?{name}", key) or not re.fullmatch(rf"({name})?", value):
            raise RecipeError(
                f"--node-selector is {pair!r}, but must be LABEL=VALUE, as `kubectl get nodes --show-labels` has"
            )
        found[key] = value
    return found


class _Dumper(yaml.SafeDumper):
    """No anchors. The recipe as a block; text in quotes where some reader could take it for something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None if PLAIN.fullmatch(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _written(manifest: Mapping[str, Any]) -> str:
    return str(yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
