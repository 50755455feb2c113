"""Numbers in few bits: near what they were, the same wherever a tensor is cut, and nothing is lost but what is left."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.wire import codec
from samestep.wire.codec import FORMATS, rounded
from samestep.wire.formats import BLOCK, LIMITS, bits

WHOLE = tuple(LIMITS.values())
# Magnitudes of 60 binary orders, and sizes that end in a short block
VALUES = st.builds(
    lambda seed, count, power: torch.randn(16 * count, generator=torch.Generator().manual_seed(seed)) * 2.0**power,
    st.integers(0, 1000),
    st.integers(1, 70),
    st.integers(-38, 20),
)


def scale_of(values: Tensor, limit: int) -> Tensor:
    return codec.scales(codec.codes(codec.peaks(values), limit))


def spread(scale: Tensor, count: int) -> Tensor:
    """The scale of each element."""
    return scale.repeat_interleave(BLOCK)[:count]


def told(lanes: list[Tensor], limit: int) -> tuple[Tensor, Tensor]:
    """The packed sum over copies of the lanes, and the sum decoded."""
    scale = scale_of(torch.stack(lanes).abs().amax(0), limit)
    width = bits(limit * len(lanes))
    packed, total = torch.empty(lanes[0].numel() * width // 8, dtype=torch.uint8), torch.empty_like(lanes[0])
    codec.round_off([lane.clone() for lane in lanes], scale, width, packed)
    codec.add_up([(packed, width)], scale, total)
    return packed, total


@given(VALUES, st.sampled_from(WHOLE))
def test_a_scale_is_the_least_of_its_kind_that_reaches_the_peak(values: Tensor, limit: int) -> None:
    peaks = codec.peaks(values)
    codes = codec.codes(peaks, limit)
    scale, below = codec.scales(codes), codec.scales((codes.int() - 1).clamp(0).to(torch.uint8))
    assert bool((scale * (limit + 0.5) > peaks).all())
    assert bool(((below * limit < peaks) | (codes == 0)).all())
    mantissa, _ = torch.frexp(scale)
    assert torch.equal(mantissa * 8, (mantissa * 8).round())


@given(VALUES, st.sampled_from(WHOLE))
def test_what_is_rounded_is_off_by_half_a_scale_at_most(values: Tensor, limit: int) -> None:
    _, total = told([values], limit)
    assert bool(((total - values).abs() <= spread(scale_of(values, limit), values.numel()) / 2).all())


@given(VALUES, st.sampled_from(WHOLE), st.integers(1, 5))
def test_what_is_sent_and_what_is_left_make_up_the_whole(values: Tensor, limit: int, count: int) -> None:
    lanes = [values * (1 + lane / 8) for lane in range(count)]
    left, scale = [lane.clone() for lane in lanes], scale_of(lanes[-1], limit)
    width = bits(limit * count)
    packed, total = torch.empty(values.numel() * width // 8, dtype=torch.uint8), torch.empty_like(values)
    codec.round_off(left, scale, width, packed)
    codec.add_up([(packed, width)], scale, total)
    assert torch.equal(total.double() + sum(x.double() for x in left), sum(x.double() for x in lanes))


@given(VALUES, st.sampled_from(WHOLE), st.data())
def test_a_cut_between_two_blocks_changes_nothing(values: Tensor, limit: int, data: st.DataObject) -> None:
    at = BLOCK * data.draw(st.integers(0, values.numel() // BLOCK))
    whole_packed, whole = told([values, -values / 3], limit)
    parts = [told([part, -part / 3], limit) for part in (values[:at], values[at:])]
    assert torch.equal(torch.cat([packed for packed, _ in parts]), whole_packed)
    assert torch.equal(torch.cat([total for _, total in parts]), whole)


@given(VALUES, st.sampled_from(WHOLE), st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_sums_over_any_groups_of_lanes_are_the_same(values: Tensor, limit: int, groups: list[int]) -> None:
    lanes = [values * (1 - lane / 30) for lane in range(sum(groups))]
    scale, sums, start = scale_of(values, limit), [], 0
    for count in groups:
        width = bits(limit * count)
        packed = torch.empty(values.numel() * width // 8, dtype=torch.uint8)
        codec.round_off([lane.clone() for lane in lanes[start : start + count]], scale, width, packed)
        sums.append((packed, width))
        start += count
    total = torch.empty_like(values)
    codec.add_up(sums, scale, total)
    assert torch.equal(total, told(lanes, limit)[1])


@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_packed_numbers_come_back(width: int) -> None:
    most = min(2 ** (width - 1) - 1, 2**23)
    numbers = torch.tensor([0, 1, -1, most, -most, most // 2, -3, 3] * 4).float()
    packed = torch.empty(numbers.numel() * width // 8, dtype=torch.uint8)
    codec._pack(numbers.clone(), width, packed)
    assert torch.equal(codec._unpacked(packed, width), numbers)


@pytest.mark.parametrize("limit", WHOLE)
@pytest.mark.parametrize("ill", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_a_block_that_is_not_finite_or_too_large_is_nan_and_its_neighbours_are_not(limit: int, ill: float) -> None:
    values = torch.ones(3 * BLOCK)
    values[BLOCK + 5] = ill
    _, total = told([values, torch.ones_like(values)], limit)
    assert bool(total[BLOCK : 2 * BLOCK].isnan().all())
    assert torch.equal(total.isnan().view(3, BLOCK).any(1), torch.tensor([False, True, False]))


def test_a_nan_with_all_bits_set_is_one_too() -> None:
    values = torch.zeros(BLOCK)
    values.view(torch.int32)[7] = 0x7FFFFFFF
    assert int(codec.codes(codec.peaks(values), 7)) == codec.ILL


@pytest.mark.parametrize("limit", WHOLE)
def test_zeros_stay_zeros(limit: int) -> None:
    _, total = told([torch.zeros(300 * 16)], limit)
    assert not total.any()


@given(VALUES)
def test_half_the_bits_are_off_by_what_is_left(values: Tensor) -> None:
    left, short = values.clone(), torch.empty(values.numel(), dtype=torch.bfloat16)
    codec.halve(left, short)
    assert torch.equal(short, values.bfloat16()) and torch.equal(short.float() + left, values)
    assert bool((left.abs() <= values.abs() / 256).all())


@given(VALUES, st.sampled_from(list(FORMATS)), st.data())
def test_new_weights_are_told_the_same_in_parts(values: Tensor, name: str, data: st.DataObject) -> None:
    at = BLOCK * data.draw(st.integers(0, values.numel() // BLOCK))
    format, before = FORMATS[name], values.clone()
    whole = rounded(format, values)
    assert torch.equal(values, before)
    assert torch.equal(torch.cat([rounded(format, part) for part in (values[:at], values[at:])]), whole)
    near = {"float32": 0.0, "bfloat16": 1 / 256, "int8": 1 / 100, "int4": 1 / 6}[name]
    peaks = spread(codec.peaks(values), values.numel())
    assert bool(((whole - values).abs() <= near * peaks + 2.0**-41).all())


@pytest.mark.parametrize("name", FORMATS)
def test_no_weights_take_no_bytes(name: str) -> None:
    assert rounded(FORMATS[name], torch.empty(0)).numel() == 0
