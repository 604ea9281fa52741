"""Plots are well-formed, and show what they are given where it belongs."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from hubdistill.report.plots import LEFT, LETTER, RIGHT, WIDTH, Style, bars, dots, lines, style, swatch, ticks

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
    root = ElementTree.fromstring(dots(rows, {"a<b>": Style("#123456")}, "kl <nats>"))
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
    assert len({style(number).colour for number in range(40)}) == 40


@pytest.mark.parametrize("curve", [[2.0], [1.0, 1.0], [3.0, 2.0, 1.0]])
def test_a_falling_curve_falls_on_the_page(curve):
    root = ElementTree.fromstring(lines({"one": curve}, {}, "nll"))
    (line,) = root.iter(f"{NAMESPACE}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert len(points) == len(curve)
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert [x for x, _ in points] == sorted({x for x, _ in points})


def test_a_curve_has_a_gap_where_nothing_was_logged():
    root = ElementTree.fromstring(lines({"one": [1.0, 2.0, None, 3.0, 4.0]}, {}, "nll"))
    assert [len(line.get("points").split()) for line in root.iter(f"{NAMESPACE}polyline")] == [2, 2]


def test_a_round_begins_between_the_steps_that_it_parts():
    root = ElementTree.fromstring(lines({"one": [1.0, 2.0, 3.0, 4.0]}, {}, "nll", marks={2.5: "round <2>"}))
    (line,) = root.iter(f"{NAMESPACE}polyline")
    at = [float(point.split(",")[0]) for point in line.get("points").split()]
    (mark,) = [float(one.get("x1")) for one in root.iter(f"{NAMESPACE}line") if one.get("stroke-dasharray") == "3 3"]
    assert at[1] < mark < at[2]
    assert "round <2>" in [text.text for text in root.iter(f"{NAMESPACE}text")]


def test_curves_of_a_legend_are_told_apart_without_colour():
    styles = {name: style(number) for number, name in enumerate(("one", "two", "three"))}
    root = ElementTree.fromstring(lines({name: [1.0, 2.0] for name in styles}, styles, "nll", legend=True))
    assert len({line.get("stroke-dasharray") for line in root.iter(f"{NAMESPACE}polyline")}) == 3
    assert set(styles) <= {text.text for text in root.iter(f"{NAMESPACE}text")}
    assert ElementTree.fromstring(swatch(styles["two"])).find(f"{NAMESPACE}line").get("stroke-dasharray") == styles["two"].dash


def test_bars_are_as_high_as_their_shares():
    root = ElementTree.fromstring(bars({"a": [0.25, 0.5], "b": [0.0, 1.0]}, ["low", "high"], {}, "alpha"))
    heights = [float(one.get("height")) for one in root.iter(f"{NAMESPACE}rect") if one.find(f"{NAMESPACE}title") is not None]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[3] == pytest.approx(4 * heights[0], abs=0.3)
    assert heights[2] == 0
    assert ElementTree.fromstring(bars({"a": [0.0]}, ["x"], {}, "none")) is not None


@pytest.mark.parametrize("number", range(10))
def test_colours_can_be_seen_on_white_and_on_near_black(number):
    """WCAG 2.2, 1.4.11: a contrast of 3 for what is drawn."""
    def light(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for paper in ("#ffffff", "#15181c"):
        low, high = sorted((light(style(number).colour), light(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3
