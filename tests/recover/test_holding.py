"""Who holds the moments follows from their size, the replicas and the free memory, and from nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.recover.holding import choose

GB = 10**9
ORDER = ["sharded", "mirrored", "replicated"]
SIZES = st.integers(1, 10**13)


@pytest.mark.parametrize(
    ("moments", "replicas", "free", "state", "says"),
    [
        (GB, 1, 64 * GB, "sharded", "the only replica holds all moments"),
        (GB, 2, 64 * GB, "replicated", "2 copies of 1 GB of moments take little of 64 GB of free memory"),
        (GB, 3, 24 * GB, "replicated", "any one of them can go on alone"),
        (GB, 3, 24 * GB - 1, "mirrored", "two copies of 1 GB of moments fit in 24 GB"),
        (GB, 4, 640 * GB, "mirrored", "a replica that dies costs one step"),
        (GB, 4, 12 * GB, "mirrored", "two replicas hold each"),
        (GB, 4, 12 * GB - 1, "sharded", "4 replicas leave no room for a second copy of 1 GB of moments"),
        (None, 4, 12 * GB, "mirrored", "the size of the model is not known"),
        (GB, 4, None, "mirrored", "the free memory is not known"),
    ],
)
def test_the_choice_is_as_the_sentence_says(
    moments: int | None, replicas: int, free: int | None, state: str, says: str
) -> None:
    found = choose(moments, replicas, free)
    assert found.state == state and says in found.reason and "\n" not in found.reason


@given(SIZES, st.integers(2, 64), SIZES, SIZES)
def test_more_memory_never_means_fewer_copies(moments: int, replicas: int, free: int, more: int) -> None:
    less, enough = (ORDER.index(choose(moments, replicas, size).state) for size in sorted((free, more)))
    assert less <= enough


@given(SIZES, st.integers(2, 64), st.integers(2, 64), SIZES)
def test_more_replicas_never_mean_more_kinds_of_copies(moments: int, replicas: int, others: int, free: int) -> None:
    fewer, more = (ORDER.index(choose(moments, count, free).state) for count in sorted((replicas, others)))
    assert more <= fewer
