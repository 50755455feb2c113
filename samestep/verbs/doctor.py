"""samestep doctor: the machines as they are, and what on them would hold up a run or end it."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samestep.errors import RecipeError
from samestep.launch.health import devices, folder, inputs, kernel, libraries, limits, links, machine, names, ports
from samestep.launch.health.ask import Answer, answer, asking
from samestep.launch.health.finding import Finding, Need, failure, split, warning
from samestep.launch.hosts import hosts_of
from samestep.recipe.load import load
from samestep.recipe.schema import Model, Recipe
from samestep.recover import alternate
from samestep.recover.journal import NAME
from samestep.verbs.needs import need_of, places_of
from samestep.verbs.places import anchored, cache_of


@dataclass(frozen=True)
class Diagnosis:
    """machine: what this one is. findings: those of each check, or that it found nothing."""

    machine: dict[str, str]
    findings: list[Finding]

    @property
    def fails(self) -> bool:
        """Whether training would."""
        return any(finding.level == "failure" for finding in self.findings)


@dataclass(frozen=True)
class Asked:
    """recipe: None where none was given. run, hosts, ports: of the command line. folders: use -> where."""

    recipe: Recipe | None
    base: Path
    run: Path | None
    folders: dict[str, Path]
    hosts: Sequence[str]
    ports: Sequence[int]


def doctor(
    path: Path | None, overrides: Sequence[str], run: Path | None, hosts: Sequence[str], taken: Sequence[int]
) -> Diagnosis:
    """Look at this machine and, with a recipe, at what that needs of it and of its hosts. Nothing is left anywhere.

    hosts: names or addresses to look up and call. taken: ports that must be free. RecipeError for a recipe that cannot
    be read.
    """
    base = path.resolve().parent if path else Path()
    recipe = anchored(load(path, overrides), base) if path else None
    return diagnosed(Asked(recipe, base, run, _folders(recipe, run), hosts, taken))


def words(listed: str) -> list[str]:
    """`a,b` -> a and b."""
    return [word.strip() for word in listed.split(",") if word.strip()]


def numbers(listed: str) -> list[int]:
    """Of ports. RecipeError for what is none."""
    for word in words(listed):
        if not word.isdecimal() or not 0 < int(word) < 1 << 16:
            raise RecipeError(f"--ports holds {word!r}, which is no port; give numbers from 1 to 65535")
    return [int(word) for word in words(listed)]


def _folders(recipe: Recipe | None, run: Path | None) -> dict[str, Path]:
    found = {"run folder": (run or Path("runs")).absolute()}
    if recipe is not None:
        found["cache"] = cache_of(recipe).absolute()
    if recipe is not None and recipe.run.alternate:
        found["alternate"] = Path(recipe.run.alternate)
    return found


def diagnosed(asked: Asked) -> Diagnosis:
    """What takes long is begun first, each in a process of its own."""
    own = socket.gethostname()
    with ExitStack() as until_all_have_spoken:
        begin = until_all_have_spoken.enter_context
        torch = begin(asking("libraries"))
        disks = {use: begin(asking("folder", str(path))) for use, path in asked.folders.items()}
        known = begin(asking("names", own, "localhost", *asked.hosts))
        limit, linux, gpus = limits.read(), kernel.read(), devices.read()
        of_recipe, need = _of_recipe(asked)
        leads = answer(known, names.PATIENCE)
        seen = {use: answer(disk, folder.PATIENCE) for use, disk in disks.items()}
        tried = answer(torch, libraries.PATIENCE)
        found = [
            *limits.judge(limit, need),
            *kernel.judge(linux, need),
            *_packages(tried, need),
            *devices.judge(gpus, tried, need),
            *(finding for use in seen for finding in _folder(asked, use, seen[use], need)),
            *_apart(asked, seen),
            *names.own(leads, own),
            *_others(asked, leads),
            *ports.judge(asked.ports, [ports.read(port) for port in asked.ports]),
            *of_recipe,
        ]
    found += _links(asked, seen, need)
    return Diagnosis(machine.facts(limit, linux, gpus, tried, seen["run folder"]), found)


def _packages(tried: Answer, need: Need) -> list[Finding]:
    wanted = libraries.requirements()
    here = libraries.versions(["torch", "transformers", *(each.name for each in wanted)])
    return libraries.judge(wanted, here, libraries.pinned(libraries.BESIDE), tried, need)


def _folder(asked: Asked, use: str, seen: Answer, need: Need) -> list[Finding]:
    """One that does not answer is not touched from here."""
    path = asked.folders[use]
    mount = folder.mount_of(path, Path("/proc/self/mountinfo").read_text())
    given = use == "run folder" and asked.run is not None
    return folder.judge(use, path, seen, mount, need) + (_used(path) if given and "free" in seen else [])


def _used(run: Path) -> list[Finding]:
    if (run / NAME).exists():
        return [warning("run folder", f"{run} holds a run", f"samestep resume {run}, or another --run to begin anew")]
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        return [failure("run folder", f"{run} is not an empty folder", "choose another with --run, or delete it")]
    return []


def _apart(asked: Asked, seen: dict[str, Answer]) -> list[Finding]:
    """An alternate is for when the run's own disk fails."""
    if "free" not in seen.get("alternate", {}):
        return []
    try:
        alternate.refuse_used(asked.folders["alternate"])
    except (RecipeError, OSError) as error:
        return [split("alternate", str(error))]
    own, other = (seen[use].get("device") for use in ("run folder", "alternate"))
    if own is None or own != other:
        return []
    what = "run.alternate is on the same disk as the run, so it is full and lost with it"
    return [warning("alternate", what, "choose a folder on another disk")]


def _others(asked: Asked, leads: Answer) -> list[Finding]:
    if not asked.hosts:
        return []
    if "found" not in leads:
        return [
            failure("hosts", f"{', '.join(asked.hosts)} cannot be looked up", "mend /etc/resolv.conf or /etc/hosts")
        ]
    found = {name: leads["found"][name] for name in asked.hosts}
    calls = [names.call(name, said[0]) for name, said in found.items() if not isinstance(said, str)]
    return names.others(found, calls)


def _of_recipe(asked: Asked) -> tuple[list[Finding], Need]:
    """What the recipe reads, and what it needs."""
    if asked.recipe is None:
        return [], Need()
    recipe = asked.recipe
    local, found = _model(recipe.model, asked.base)
    found += inputs.sources(recipe.data, asked.base)
    try:
        return found, need_of(recipe, asked.base, local)
    except RecipeError:  # it was told of
        return found, Need(near=places_of(recipe.run), threads=recipe.compute.threads)
    except OSError as error:
        return [*found, failure("model", f"the model cannot be read ({error})", "make it readable")], Need()


def _model(model: Model, base: Path) -> tuple[Model, list[Finding]]:
    """With the findings, the model as it lies here: one that is named may be in the hub's cache."""
    if model.name is None:
        return model, inputs.model(model, base)
    hub = inputs.hub(model.name)
    found = inputs.judge_hub(hub)
    return (model if hub.cached else model.model_copy(update={"name": None, "config": ""})), found


def _links(asked: Asked, seen: dict[str, Answer], need: Need) -> list[Finding]:
    """The hosts of the recipe are asked once nothing else is under way."""
    if asked.recipe is None or not asked.recipe.run.hosts:
        return []
    hosts = hosts_of(asked.recipe.run)
    with ExitStack() as until_all_have_looked:
        there = [Path(facts["there"]) for facts in seen.values() if "sync" in facts]
        marks = [until_all_have_looked.enter_context(links.mark(folder)) for folder in dict.fromkeys(there)]
        return links.judge(links.survey(hosts, [str(mark) for mark in marks]), hosts, need)


def as_dict(found: Diagnosis) -> dict[str, Any]:
    return {"machine": found.machine, "findings": [each._asdict() for each in found.findings], "fails": found.fails}


def lines(found: Diagnosis, colour: bool = False) -> Iterator[str]:
    """The machine, then what was found, the worst first."""
    width = max(map(len, found.machine))
    yield from (f"{name.ljust(width)}  {said}" for name, said in found.machine.items())
    yield ""
    for level in ORDER:
        for each in (each for each in found.findings if each.level == level):
            mark = f"\x1b[{ORDER[level]}m{level}\x1b[0m" if colour else level
            yield f"{mark}{' ' * (8 - len(level))}{each.check}: {_said(each)}"
    yield ""
    yield VERDICTS[found.fails]


def _said(each: Finding) -> str:
    return f"{each.what}; {each.fix}" if each.fix else each.what


ORDER = {"failure": 31, "warning": 33, "ok": 32}  # colours of a terminal
VERDICTS = {True: "training would fail here", False: "training would work here"}
