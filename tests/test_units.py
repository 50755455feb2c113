"""Numbers as people read them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.units import count, duration, rate, share, size


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"), (7, "7"), (999, "999"), (1000, "1 k"), (12_345_678, "12.3 M"), (1_234_567, "1.23 M"),
        (999_499, "999 k"), (999_500, "1 M"), (999_999, "1 M"), (13.9e9, "13.9 G"), (3.456, "3.46"), (-4200, "-4.2 k"),
        (5e18, "5000 P"), (math.nan, "?"), (math.inf, "?"),
    ],
)  # fmt: skip
def test_counts_have_three_digits_and_a_unit(number: float, shown: str) -> None:
    assert count(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"), (0.0123, "12.3 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (9.34, "9.3 s"), (59.94, "59.9 s"),
        (59.96, "1 min 0 s"), (93.0, "1 min 33 s"), (3599.6, "1 h 0 min"), (7380, "2 h 3 min"), (86399, "23 h 59 min"),
        (183_600, "2 d 3 h"), (-93, "-1 min 33 s"), (math.inf, "?"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_durations_name_their_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_sizes_rates_and_shares_have_their_units() -> None:
    assert size(55_600_000) == "55.6 MB"
    assert size(12) == "12 B"
    assert rate(12_345, "tokens") == "12.3 k tokens/s"
    assert share(0.1234) == "12.3 %"
    assert share(math.nan) == "?"


@settings(deadline=None)
@given(st.floats(1, 9.99e17))
def test_a_count_is_within_half_a_percent(number: float) -> None:
    digits, _, unit = count(number).partition(" ")
    assert float(digits) < 1000
    assert float(digits) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}[unit] == pytest.approx(
        number, rel=0.00501
    )
