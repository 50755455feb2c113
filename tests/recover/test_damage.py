"""A real checkpoint with one bit flipped, or a file cut short, is loaded by nobody; scripts/flips does 20,000."""

import random
from pathlib import Path

from tests.recover.damage import Loading, campaign


def test_no_damage_is_loaded_and_each_is_named_by_file_and_tensor(tmp_path: Path) -> None:
    found = campaign(Loading(tmp_path), flips=300, cuts=40, chance=random.Random(1))
    assert found["wrong"] == [] and len(found["files"]) == 4
    assert found["flip"] == 300 and found["refused"] == found["named_file"] == found["flip"] + found["cut"]
    assert found["named_tensor"] == found["of_a_tensor"] > 200
