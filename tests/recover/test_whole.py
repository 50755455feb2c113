"""Parts of a parameter that is cut over shards, and the same elements of the whole one."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from samestep.model.split import Cut
from samestep.recover.shards import Part
from samestep.recover.whole import joined, own

CUTS = [
    (Cut((12,), 0), 2),
    (Cut((6, 5), 0), 3),
    (Cut((5, 8), 1), 2),
    (Cut((5, 6), 1), 3),
    (Cut((2, 4, 3), 1), 4),
    (Cut((7, 3), None), 2),
]


def counted(cut):
    """The whole parameter, whose elements say where they are, and the part of each shard, both flat."""
    whole = torch.arange(float(np.prod(cut.shape))).view(cut.shape)
    return whole.flatten(), lambda shards: [
        whole.flatten() if cut.dim is None else part.flatten() for part in whole.chunk(shards, cut.dim or 0)
    ][:shards]


def ranges(size, chance):
    ends = sorted({0, size, *(chance.randrange(size) for _ in range(3))})
    return list(pairwise(ends))


@pytest.mark.parametrize(("cut", "shards"), CUTS)
def test_the_parts_of_all_shards_make_up_every_element_once_and_in_its_place(cut, shards):
    whole, parts = counted(cut)
    mine = [whole] * shards if cut.dim is None else parts(shards)
    for seed in range(20):
        found = {}
        for start, stop in ranges(len(mine[0]), random.Random(seed)):
            new = joined(Part("weights", "p", start, stop), [each[start:stop] for each in mine], cut)
            assert not new.keys() & found.keys()
            found |= new
        places = [place for part in found for place in range(part.start, part.stop)]
        assert sorted(places) == list(range(len(whole)))
        for part, values in found.items():
            assert torch.equal(values, whole[part.start : part.stop]), part


@pytest.mark.parametrize(("cut", "shards"), CUTS)
def test_of_parts_cut_anywhere_each_shard_finds_its_own(cut, shards):
    whole, parts = counted(cut)
    for seed in range(20):
        for shard in range(shards):
            mine = whole if cut.dim is None else parts(shards)[shard]
            pieces = [
                (Part("moment0", "p", a, b), memoryview(whole[a:b].numpy()))
                for a, b in ranges(len(whole), random.Random(seed))
            ]
            seen = torch.full_like(mine, -1)
            for part, data in own(pieces, {"p": cut}, shard, shards):
                assert part.kind == "moment0" and (seen[part.start : part.stop] == -1).all()
                seen[part.start : part.stop] = torch.frombuffer(data, dtype=torch.float32)
            assert torch.equal(seen, mine)


def test_whole_lines_stay_together():
    """A checkpoint of many rows names few parts."""
    cut = Cut((100, 8), 1)
    values = [torch.zeros(398), torch.ones(398)]
    found = joined(Part("weights", "p", 1, 399), values, cut)
    assert len(found) == 2 + 1 + 2
