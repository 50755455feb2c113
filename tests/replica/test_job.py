import json
from pathlib import Path

import pytest

from samestep.errors import ClusterError
from samestep.recipe.schema import Recipe
from samestep.replica.job import Job, parse
from samestep.replica.place import connect


def test_a_job_survives_the_line_to_the_replica():
    recipe = Recipe(steps=3, lanes=2, model={"dropout": 0.1}, run={"replicas": 2})
    job = Job("train", recipe, Path("/base"), [Path("/a"), Path("/b")], Path("runs/x"), 3, 2, tensors=True)
    assert parse(json.loads(json.dumps(job.dump()))) == job


def test_a_replica_started_by_hand_says_what_to_do():
    with pytest.raises(ClusterError, match="started by an engine, not by hand; use samestep train"):
        connect({})
