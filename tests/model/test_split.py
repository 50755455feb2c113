import pytest

from samestep.errors import RecipeError
from samestep.model.split import Cut, evenly


def test_a_parameter_is_cut_along_its_first_dimension_that_splits():
    shapes = {"embedding": (97, 32), "up": (48, 32), "norm": (32,)}
    assert evenly(shapes, 2) == {
        "embedding": Cut((97, 32), 1),
        "up": Cut((48, 32), 0),
        "norm": Cut((32,), 0),
    }


def test_one_that_does_not_split_is_named():
    with pytest.raises(RecipeError, match=r"odd has the shape \[3, 5\], no side of which splits into compute.shards 2"):
        evenly({"odd": (3, 5)}, 2)
