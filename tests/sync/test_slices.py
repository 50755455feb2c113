import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.sync import slices

SIZES = st.lists(st.integers(1, 300_000), min_size=1, max_size=12)
LANES = st.integers(1, 64)


@given(SIZES, LANES)
def test_parameters_lie_apart_aligned_and_last_first(sizes, lanes):
    regions = slices.layout(sizes, lanes).regions
    assert [r.size for r in regions] == sizes
    assert all(r.start % slices.ALIGNMENT == 0 for r in regions)
    ordered = list(reversed(regions))
    assert all(a.stop <= b.start < a.stop + slices.ALIGNMENT for a, b in itertools.pairwise(ordered))


@given(SIZES, LANES)
def test_pieces_cover_each_parameter_once_and_stay_in_their_slice(sizes, lanes):
    layout = slices.layout(sizes, lanes)
    covered = [0] * len(sizes)
    for index, pieces in enumerate(layout.pieces):
        for piece in pieces:
            assert index * layout.slice <= piece.start < piece.stop <= (index + 1) * layout.slice
            assert piece.start % slices.ALIGNMENT == 0
            region = layout.regions[piece.parameter]
            assert region.start + covered[piece.parameter] == piece.start
            covered[piece.parameter] += piece.stop - piece.start
    assert covered == sizes


@given(SIZES, LANES, st.data())
def test_owners_share_each_bucket_in_whole_slices(sizes, lanes, data):
    layout = slices.layout(sizes, lanes)
    owners = data.draw(st.integers(1, lanes))
    for bucket in range(layout.buckets):
        regions = [layout.owned(bucket, owner, owners) for owner in range(owners)]
        whole = layout.bucket_region(bucket)
        assert regions[0].start == whole.start and regions[-1].stop == whole.stop
        assert all(a.stop == b.start for a, b in itertools.pairwise(regions))
        assert all(r.start % layout.slice == 0 or r.size == 0 for r in regions)


@given(SIZES, LANES, st.data())
def test_the_pieces_that_owners_hold_never_depend_on_their_number(sizes, lanes, data):
    layout = slices.layout(sizes, lanes)
    owners = data.draw(st.integers(1, lanes))
    held = [
        piece
        for bucket in range(layout.buckets)
        for owner in range(owners)
        for _, piece in layout.pieces_in(layout.owned(bucket, owner, owners))
    ]
    assert held == [piece for pieces in layout.pieces for piece in pieces]


@given(SIZES, LANES)
def test_a_parameter_knows_the_buckets_that_wait_for_it(sizes, lanes):
    layout = slices.layout(sizes, lanes)
    for parameter, region in enumerate(layout.regions):
        for bucket in range(layout.buckets):
            start, stop = layout.bucket_region(bucket)
            assert (bucket in layout.buckets_of(parameter)) == (start < region.stop and region.start < stop)


def test_large_models_get_large_buckets_and_shares_of_one_size():
    layout = slices.layout([100_000_000] * 10, 8)
    assert layout.bucket == slices.LARGEST_BUCKET
    sizes = [layout.owned(0, owner, 8).size for owner in range(8)]
    assert max(sizes) == min(sizes)


@pytest.mark.parametrize("sizes", [[], [4, 0]])
def test_nothing_to_lay_out_is_refused(sizes):
    with pytest.raises(ValueError, match="at least one parameter"):
        slices.layout(sizes, 1)
