"""Results by the length of the prompt, against sums by hand."""

from __future__ import annotations

import pytest

from hubdistill.evaluation import heldout
from hubdistill.evaluation.lengths import MEASURED, buckets, by_length


def test_prompts_of_one_length_stay_together_and_no_part_is_empty():
    lengths = {"a": 3, "b": 9, "c": 5, "d": 5, "e": 5, "f": 20}
    found = buckets(lengths)
    assert found == [{"a"}, {"c", "d", "e"}, {"b", "f"}] or found == [{"a"}, {"c", "d", "e", "b", "f"}] or sum(map(len, found)) == 6
    assert all(len({part for part in range(len(found)) if any(lengths[key] == length for key in found[part])}) == 1 for length in lengths.values())
    assert buckets(dict.fromkeys("abcdef", 7)) == [set("abcdef")]
    assert buckets({}) == []


def test_each_part_has_its_means_and_the_difference_to_the_warm_up():
    lengths = {"a": 1, "b": 1, "c": 10, "d": 12, "e": 30, "f": 40}
    before = {"a": 1.0, "b": 3.0, "c": 5.0, "d": 5.0, "e": 4.0, "f": 6.0}
    after = {"a": 0.0, "b": 1.0, "c": 5.0, "d": 4.0, "e": 7.0, "f": 9.0}
    (kl,) = by_length({"kl, teacher responses": {"student": dict.fromkeys(before, 9.0), "warm-up": before, "distilled": after}, "skl, teacher responses": {"distilled": after}}, lengths)
    assert [(one["shortest"], one["longest"], one["n"]) for one in kl["buckets"]] == [(1, 1, 2), (10, 12, 2), (30, 40, 2)]
    assert [one["subjects"]["distilled"][0] for one in kl["buckets"]] == [0.5, 4.5, 8.0]
    assert [(one["difference"]["against"], one["difference"]["value"]) for one in kl["buckets"]] == [("warm-up", -1.5), ("warm-up", -0.5), ("warm-up", 3.0)]
    assert kl["buckets"][2]["difference"]["low"] == pytest.approx(3.0)  # worse on every long prompt
    assert (kl["metric"], kl["on"], kl["better"]) == ("kl", "teacher responses", "lower")


def test_without_a_warm_up_the_student_stands_there_and_one_length_has_no_table():
    values = {"kl, teacher responses": {"student": {"a": 1.0, "b": 2.0, "c": 3.0}, "distilled": {"a": 2.0, "b": 2.0, "c": 1.0}}}
    (kl,) = by_length(values, {"a": 1, "b": 2, "c": 3})
    assert [one["difference"]["against"] for one in kl["buckets"]] == ["student"] * 3
    assert by_length(values, dict.fromkeys("abc", 4)) == []
    assert by_length({}, {"a": 1, "b": 2}) == []


def test_units_are_those_of_the_measurements():
    assert {metric: found for (metric, _), found in MEASURED.items()} == {metric: heldout.UNITS[metric] for metric, _ in MEASURED}
    assert {on for _, on in MEASURED} == {heldout.ON_TEACHER, heldout.ON_OWN}
