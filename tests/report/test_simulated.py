"""The picture of simulated runs: well-formed, with what it should show, and nothing that a name could smuggle in."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from samestep.report.simulated import DAY, MARKS, POINTS, picture

SVG = "{http://www.w3.org/2000/svg}"
CURVES = {"restart": [(0.0, 0), (DAY, 300), (DAY, 200), (2 * DAY, 500)], "survivors": [(0.0, 0), (2 * DAY, 900)]}


def drawn(**more):
    fields = {"title": "10 replicas", "under": "a step takes 1 s", "days": 2.0, "ideal": 1000}
    fields |= {"curves": CURVES, "blows": [DAY]}
    return ElementTree.fromstring(picture(**(fields | more)))


def said(root):
    return [each.text for each in root.iter(f"{SVG}text")]


def test_each_policy_has_a_line_with_its_name_and_what_it_reached():
    root = drawn()
    lines = [each.get("style") for each in root.iter(f"{SVG}polyline")]
    assert [re.search(r"--(\w+)", line)[1] for line in lines] == ["even", "restart", "survivors"]
    assert {"restart 500", "survivors 900", "without failures 1 k", "1 lost"} <= set(said(root))


def test_a_line_goes_back_where_steps_were_lost_and_stays_inside():
    points = drawn().findall(f"{SVG}polyline")[1].get("points").split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[2] > heights[1] and heights == [max(52, min(310, height)) for height in heights]


def test_names_at_the_ends_are_not_written_over_each_other():
    same = {policy: [(0.0, 0), (2 * DAY, 999)] for policy in CURVES}
    names = (*CURVES, "without failures")
    texts = [each for each in drawn(curves=same).iter(f"{SVG}text") if each.text.startswith(names)]
    places = sorted(float(each.get("y")) for each in texts)
    assert len(places) == 3
    assert all(after - before >= 15 for before, after in itertools.pairwise(places))


def test_of_very_many_points_and_marks_some_are_shown():
    many = [(DAY * k / 10_000, k) for k in range(10_000)]
    root = drawn(curves={"restart": many}, blows=[at for at, _ in many])
    assert len(root.findall(f"{SVG}polyline")[1].get("points").split()) <= POINTS + 1
    marks = [path.get("d") for path in root.iter(f"{SVG}path")][-1]
    assert marks.count("M") <= MARKS and "10,000 lost, one in 25 shown" in said(root)


def test_it_is_readable_in_the_dark():
    style = drawn().find(f"{SVG}style").text
    light, dark = style.split("prefers-color-scheme: dark")
    for name in ("ground", "ink", "restart", "survivors"):
        assert re.search(rf"--{name}: (#\w+)", light)[1] != re.search(rf"--{name}: (#\w+)", dark)[1]


@pytest.mark.parametrize("field", ["title", "under"])
def test_text_is_only_text(field):
    assert "<script>alert(1)</script>" in said(drawn(**{field: "<script>alert(1)</script>"}))
