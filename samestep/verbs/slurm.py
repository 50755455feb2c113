"""samestep slurm: recipes become Slurm jobs, which put themselves into the queue again until they are done."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samestep.errors import ClusterError, RecipeError
from samestep.launch.rendezvous import FOLDER
from samestep.launch.slurm import PARTS, Wanted, script
from samestep.recipe.load import load
from samestep.verbs.launched import refuse
from samestep.verbs.train import engine_of

SCRIPT = "job.sh"


@dataclass(frozen=True)
class Submitted:
    """job: its number, None where it was not submitted."""

    job: int | None
    runs: list[str]
    script: str
    text: str


def slurm(
    words: Sequence[str],
    nodes: int,
    per_node: int,
    time: str | None,
    partition: str | None,
    run: Path | None,
    also: Sequence[str],
    dry_run: bool,
    engine: str = "env",
) -> Submitted:
    """words: recipes, then overrides. run: of one recipe its folder; of several the folder of their folders. engine:
    env or ray, see launch/slurm.py.
    """
    if engine not in PARTS:
        raise RecipeError(f"--engine is {engine!r}, but must be one of {', '.join(PARTS)} under Slurm")
    if engine == "ray":
        engine_of(engine, None)
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    recipes = [Path(word).resolve() for word in words if word not in overrides]
    if not recipes:
        raise RecipeError("samestep slurm was given no recipe; name one, such as recipes/tiny.yaml")
    loaded = [load(recipe, overrides) for recipe in recipes]
    for recipe in loaded:
        refuse(recipe, nodes * per_node, f"Slurm with --nodes {nodes} --replicas-per-node {per_node}")
    top, runs = _folders(recipes, run)
    wanted = Wanted(
        "samestep-" + "-".join(recipe.stem for recipe in recipes[:3]),
        recipes,
        runs,
        top / FOLDER,
        nodes,
        per_node,
        max(recipe.compute.threads for recipe in loaded),
        [sys.executable, "-m", "samestep.cli"],
        Path.cwd(),
        overrides,
        time,
        partition,
        also,
        engine,
    )
    text, path = script(wanted), top / FOLDER / SCRIPT
    job = None if dry_run else _submit(path, text)
    return Submitted(job, [str(folder) for folder in runs], str(path), text)


def lines(submitted: Submitted) -> list[str]:
    if submitted.job is None:
        return submitted.text.splitlines()
    goes = f"job {submitted.job} is in the queue; it goes on by itself after preemption and at its time limit"
    return [goes, f"script and logs: {Path(submitted.script).parent}", *(f"run: {run}" for run in submitted.runs)]


def _folders(recipes: Sequence[Path], run: Path | None) -> tuple[Path, list[Path]]:
    if len(recipes) == 1:
        folder = (run or _free(Path("runs"), recipes[0].stem)).resolve()
        return folder, [folder]
    names = [recipe.stem for recipe in recipes]
    if len(set(names)) < len(names):
        raise RecipeError("several recipes have the same file name; rename one, as each names its run folder")
    top = (run or _free(Path("runs"), "slurm")).resolve()
    return top, [top / name for name in names]


def _free(folder: Path, name: str) -> Path:
    return next(at for n in range(1, sys.maxsize) if not (at := folder / f"{name}-{n}").exists())


def _submit(path: Path, text: str) -> int:
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "samestep slurm calls sbatch, which is not here; call it on a host of Slurm, or add --dry-run"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"code {done.returncode}").splitlines()[-1]
        raise ClusterError(f"sbatch did not take {path}: {reason}")
    return int(done.stdout.split(";")[0])
