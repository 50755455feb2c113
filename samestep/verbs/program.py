"""What every replica of a job runs, and who may take part."""

import sys

from samestep.launch.engine import Program
from samestep.launch.hosts import hosts_of
from samestep.recipe.schema import Recipe
from samestep.recover.protocol import Terms
from samestep.replica.job import Job, copies

TRANSPORTS = {"auto": "shared memory", "sockets": "sockets"}  # by run.transport: replicas of one host
REPLICA = (sys.executable, "-P", "-m", "samestep.replica")


def program(job: Job) -> Program:
    """It ends with the first replica that is lost."""
    recipe = job.recipe
    return Program(
        REPLICA,
        _transport(recipe),
        recipe.compute.threads,
        job.dump(),
        job.run / "logs",
        ends_silent=recipe.run.silent == "end",
        hosts=hosts_of(recipe.run),
        gpus=int(recipe.compute.device == "cuda"),
        shards=recipe.compute.shards,
    )


def _transport(recipe: Recipe) -> str:
    """Fast needs the backend's all-reduce."""
    return "torch" if recipe.sync.strategy == "fast" else TRANSPORTS[recipe.run.transport]


def terms(recipe: Recipe) -> Terms:
    """Who may take part, by the recipe."""
    run = recipe.run
    return Terms(run.replicas, recipe.most_replicas, copies(recipe), run.replace, minimum=run.minimum)
