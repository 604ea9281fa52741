"""Plots are well-formed, and show what they are given where it belongs."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from hubdistill.compare.plots import LEFT, LETTER, RIGHT, WIDTH, colour, dots, lines, ticks

NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (0.0012, 0.0019), (5, 5.0001), (-2e6, 3e6)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low <= tick <= high for tick in found)
    steps = {round((second - first) / (high - low), 9) for first, second in pairwise(found)}
    assert len(steps) == 1
    assert ticks(3, 3) == []


def test_a_dot_lies_where_its_value_is_and_names_are_escaped():
    rows = {"a<b>": (1.0, 0.5, 2.0), "c&d": (3.0, 2.5, 3.5)}
    root = ElementTree.fromstring(dots(rows, {"a<b>": "#123456"}, "kl <nats>"))
    assert [text.text for text in root.iter(f"{NAMESPACE}text") if text.get("text-anchor") == "end"] == list(rows)
    circles = [float(one.get("cx")) for one in root.iter(f"{NAMESPACE}circle")]
    intervals = [(float(one.get("x1")), float(one.get("x2"))) for one in root.iter(f"{NAMESPACE}line") if one.get("stroke-width")]
    assert LEFT < circles[0] < circles[1] < WIDTH - RIGHT
    per_unit = (circles[1] - circles[0]) / 2.0
    for (value, low, high), x, (begin, end) in zip(rows.values(), circles, intervals, strict=True):
        assert x - begin == pytest.approx((value - low) * per_unit, abs=0.2)
        assert end - x == pytest.approx((high - value) * per_unit, abs=0.2)


def test_long_names_stay_on_the_page_and_differ():
    names = ["distillm2:loss.alpha_range=[0.01,0.2]:loss.alpha=0.15", "distillm2:loss.alpha_range=[0.01,0.2]:loss.alpha=0.12", "distillm2:loss.beta=paper"]
    root = ElementTree.fromstring(dots(dict.fromkeys(names, (1.0, 0.5, 2.0)), {}, "kl"))
    shown = [text for text in root.iter(f"{NAMESPACE}text") if text.get("text-anchor") == "end"]
    assert len({text.text for text in shown}) == 3
    assert all(float(text.get("x")) - LETTER * len(text.text) >= 0 for text in shown)
    assert shown[2].text == names[2]


def test_no_two_methods_have_one_colour():
    assert len({colour(number) for number in range(40)}) == 40


@pytest.mark.parametrize("curve", [[2.0], [1.0, 1.0], [3.0, 2.0, 1.0]])
def test_a_falling_curve_falls_on_the_page(curve):
    root = ElementTree.fromstring(lines({"one": curve}, {}, "nll"))
    (line,) = root.iter(f"{NAMESPACE}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert len(points) == len(curve)
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert [x for x, _ in points] == sorted({x for x, _ in points})
