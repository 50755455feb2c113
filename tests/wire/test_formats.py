"""How many bytes numbers take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.wire.formats import EXACT, LIMITS, WIDTHS, Formats, bits, of_sums, of_weights


@given(st.integers(1, 1 << 30))
def test_the_width_of_a_whole_number_is_the_least_that_holds_both_signs(most: int) -> None:
    width = bits(most)
    assert most <= 2 ** (width - 1) - 1
    assert all(most > 2 ** (less - 1) - 1 for less in WIDTHS if less < width)


@pytest.mark.parametrize(
    ("format", "lanes", "size"),
    [
        ("float32", 8, 4096),
        ("bfloat16", 8, 2048),
        ("int8", 1, 1024),
        ("int8", 2, 2048),
        ("int8", 300, 4096),
        ("int4", 1, 512),
        ("int4", 18, 1024),
        ("int4", 19, 2048),
    ],
)
def test_a_sum_over_more_lanes_takes_more_bits(format: str, lanes: int, size: int) -> None:
    assert of_sums(format, 1024, lanes) == size


def test_new_weights_have_a_byte_of_scale_a_block() -> None:
    assert [of_weights(format, 1024) for format in ("float32", "bfloat16", "int8", "int4")] == [4096, 2048, 1028, 516]
    assert of_weights("int4", 16) == 9


def test_only_float32_both_ways_is_exact() -> None:
    assert not EXACT.rounded and Formats("int8", "float32").rounded and Formats("float32", "int4").rounded
    assert set(LIMITS.values()) == {127, 7}
