"""Geometry: no peak is lost, no line leaves its plot, what replicas tell is spread over the right columns."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.report import chart
from samestep.report.chart import Scale
from samestep.report.read import Spent

values = st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=300)


@given(values, st.integers(1, 50))
def test_every_step_is_in_one_column_and_every_peak_is_kept(found, most):
    places = chart.groups(range(1, len(found) + 1), most)
    assert [at for place in places for at in place] == list(range(len(found)))
    assert len(places) == min(most, len(found)) and all(len(place) for place in places)
    known = [value for value in found if value is not None]
    columns = [each for each in chart.columns(found, places) if each.mean is not None]
    if known:
        assert max(each.high for each in columns) == max(known) and min(each.low for each in columns) == min(known)
        assert all(each.low - 1e-6 <= each.mean <= each.high + 1e-6 for each in columns)


def test_no_steps_have_no_columns():
    assert chart.groups([]) == [] and chart.columns([], []) == []


@given(st.lists(st.floats(-1e9, 1e9), max_size=20), st.booleans())
def test_values_lie_inside_their_scale_and_so_do_its_ticks(found, zero):
    found = [abs(value) for value in found] if zero else found
    scale = chart.scale(found, zero)
    assert all(-1e-6 <= scale.y(value) <= chart.HEIGHT + 1e-6 for value in found)
    ticks = chart.ticks(scale)
    assert ticks == sorted(ticks) and len(ticks) <= 7
    assert all(-1e-6 <= scale.y(tick) <= chart.HEIGHT + 1e-6 for tick in ticks)


@pytest.mark.parametrize(("found", "log"), [([1, 50], False), ([0.001, 5], True), ([-1, 500], False), ([], False)])
def test_what_spans_decades_is_drawn_by_powers_of_ten(found, log):
    scale = chart.scale(found)
    assert scale.log == log
    if log:
        assert chart.ticks(scale) == pytest.approx([0.001, 0.01, 0.1, 1])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (5.46, 6.29, [5.6, 5.8, 6, 6.2]), (0, 830, [0, 200, 400, 600, 800])],
)
def test_ticks_are_round(low, high, ticks):
    assert chart.ticks(Scale(low, high)) == pytest.approx(ticks)


def test_what_towers_above_all_others_does_not_set_the_scale():
    assert chart.capped([*[1.0] * 20, 2.9, 900.0]) == [*[1.0] * 20, 2.9]
    assert chart.capped([1.0, 2.0]) == [1.0, 2.0] and chart.capped([]) == []


def test_a_line_is_lifted_where_nothing_is_known_and_a_lone_point_is_a_dot():
    assert chart.line([(0, 1), (2, 3.25)]) == "M0 1h0L2 3.2"
    assert chart.line([None, (0, 1), None, (2, 3), (4, 5), None]) == "M0 1h0M2 3h0L4 5"
    assert chart.line([]) == ""


def test_a_band_goes_there_below_and_back_above():
    assert chart.band([(0, 9, 1), (5, 8, 2)]) == "M0 9 5 8L5 2 0 1Z"
    assert chart.band([(0, 9, 1), None, (5, 8, 2)]).count("Z") == 2


@given(st.lists(st.none() | st.tuples(st.floats(0, 1000), st.floats(-1e12, 1e12)), max_size=30))
def test_a_path_has_nothing_but_numbers_in_it(points):
    assert re.fullmatch(r"(M-?[\d.]+ -?[\d.]+h0(L-?[\d.]+ -?[\d.]+( -?[\d.]+ -?[\d.]+)*)?)*", chart.line(points))


def told(replica, step, steps, seconds, memory=1):
    return Spent(step, steps, replica, "h", 1, {"forward": seconds}, 0, memory, memory)


def test_phases_are_the_mean_of_those_that_tell_of_a_column():
    spent = [told("a", 4, 4, 4.0), told("a", 8, 4, 12.0), told("b", 8, 8, 16.0)]
    assert chart.phases(spent, [2, 4, 6, 8]) == [{"forward": 1.5}, {"forward": 1.5}, {"forward": 2.5}, {"forward": 2.5}]
    assert chart.phases(spent, [8]) == [{"forward": 2.0}]
    assert chart.phases(spent[1:2], [2, 8]) == [{}, {"forward": 3.0}]


def test_memory_is_that_of_the_account_that_covers_a_column():
    spent = [told("a", 4, 4, 1.0, 10), told("a", 8, 4, 1.0, 20), told("b", 8, 2, 1.0, 30)]
    assert chart.memories(spent, [2, 4, 6, 8]) == {"a": [10, 10, 20, 20], "b": [None, None, None, 30]}


def test_seconds_are_kept_whatever_the_columns():
    spent = [told("a", n, 3, float(n)) for n in range(3, 301, 3)]
    for count in (1, 7, 50, 300):
        ends = [place[-1] + 1 for place in chart.groups(range(1, 301), count)]
        widths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        total = sum(each["forward"] * width for each, width in zip(chart.phases(spent, ends), widths, strict=True))
        assert math.isclose(total, sum(range(3, 301, 3)))
