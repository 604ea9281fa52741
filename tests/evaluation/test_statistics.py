"""Intervals against a plain bootstrap with another generator, against theory, and at the edges."""

import itertools
import json
import math
import random
import statistics as plain

import numpy
import pytest

from hubdistill.evaluation import statistics as module
from hubdistill.evaluation.statistics import (
    Difference,
    Measurement,
    around_geometric_mean,
    holm,
    mean_and_interval,
    paired_difference,
    paired_p,
    summarise,
)


def skewed(number: int, seed: int = 1) -> list[float]:
    generator = random.Random(seed)
    return [generator.expovariate(2.0) for _ in range(number)]


def plain_bootstrap(values, resamples: int = 4000) -> tuple[float, float]:
    """Resample with the standard library's generator; the interval is read off the sorted means."""
    generator = random.Random(99)
    means = sorted(plain.fmean(generator.choices(values, k=len(values))) for _ in range(resamples))
    return means[round(0.025 * resamples)], means[round(0.975 * resamples)]


def prompts(values) -> dict[str, float]:
    return {f"{i:03d}": value for i, value in enumerate(values)}


def measurement(**changes) -> Measurement:
    described = {"metric": "kl", "subject": "distilled", "on": "teacher responses", "value": 0.25, "low": 0.125, "high": 0.5, "n": 7,
                 "unit": "nats/token", "better": "lower"}  # fmt: skip
    return Measurement(**(described | changes))


@pytest.mark.parametrize("number", [5, 40])
def test_the_interval_is_that_of_a_plain_bootstrap(number):
    values = skewed(number)
    mean, low, high = mean_and_interval(values)
    expected_low, expected_high = plain_bootstrap(values)
    spread = plain.pstdev(values) / math.sqrt(number)
    assert mean == pytest.approx(plain.fmean(values))
    assert low == pytest.approx(expected_low, abs=0.15 * spread)
    assert high == pytest.approx(expected_high, abs=0.15 * spread)


def test_an_interval_of_many_prompts_resampled_in_slices_is_that_of_the_normal_limit():
    values = skewed(3000)
    mean, low, high = mean_and_interval(values)
    half = 1.96 * plain.stdev(values) / math.sqrt(len(values))
    assert mean - low == pytest.approx(half, rel=0.06)
    assert high - mean == pytest.approx(half, rel=0.06)


def test_all_resamples_are_used_whatever_the_slices(monkeypatch):
    sizes = []
    original = numpy.percentile
    monkeypatch.setattr(numpy, "percentile", lambda means, at: sizes.append(len(means)) or original(means, at))
    for number in (1, 199, 201, 3001):
        mean_and_interval(skewed(number))
    assert sizes == [10_000] * 4


def test_about_95_of_100_intervals_hold_the_true_mean(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 1000)
    generator = random.Random(5)
    held = 0
    for trial in range(1000):
        _, low, high = mean_and_interval([generator.gauss(3.0, 2.0) for _ in range(50)], seed=trial)
        held += low <= 3.0 <= high
    assert 0.925 < held / 1000 < 0.965


def test_the_seed_fixes_the_interval_and_nothing_else_moves_it():
    values = skewed(30)
    assert mean_and_interval(values, 4) == mean_and_interval(values, 4)
    assert mean_and_interval(values, 4)[0] == mean_and_interval(values, 5)[0]
    assert mean_and_interval(values, 4)[1:] != mean_and_interval(values, 5)[1:]
    keyed = prompts(values)
    backwards = dict(reversed(keyed.items()))
    described = {"metric": "kl", "subject": "student", "on": "own responses", "unit": "nats/token", "better": "lower"}
    assert summarise(keyed, seed=4, **described) == summarise(backwards, seed=4, **described)
    assert paired_difference(keyed, backwards, "x") == paired_difference(backwards, keyed, "x")


@pytest.mark.parametrize("values", [[0.3], [0.3] * 50, [0.0, 0.0]])
def test_values_without_spread_have_an_interval_without_width(values):
    assert mean_and_interval(values) == pytest.approx((values[0],) * 3)


def test_no_value_at_all_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="measure at least one prompt"):
        mean_and_interval([])


def test_a_paired_difference_is_over_shared_prompts_only():
    ours = {"a": 1.0, "b": 4.0, "only ours": 1000.0}
    theirs = {"b": 1.0, "a": 0.0, "only theirs": -1000.0}
    found = paired_difference(ours, theirs, "student")
    assert found.against == "student"
    assert found.value == pytest.approx(2.0), "(1 - 0) and (4 - 1)"
    assert (found.low, found.high) == pytest.approx((1.0, 3.0))
    turned = paired_difference(theirs, ours, "student")
    assert (turned.value, turned.low, turned.high) == pytest.approx((-2.0, -3.0, -1.0))


def test_pairing_narrows_the_interval_where_prompts_differ_more_than_models():
    hard = skewed(60)
    noise = random.Random(3)
    worse, better = prompts(value + 0.05 for value in hard), prompts(value + noise.gauss(0, 0.02) for value in hard)
    paired = paired_difference(better, worse, "student")
    sides = [mean_and_interval(list(side.values())) for side in (better, worse)]
    unpaired = math.hypot(*(high - low for _, low, high in sides))
    assert paired.high - paired.low < unpaired / 5
    assert paired.value == pytest.approx(-0.05, abs=0.01)
    assert paired.significant
    assert sides[0][2] > sides[1][1], "unpaired, nobody could tell them apart"


def test_nothing_in_common_is_an_error_that_names_the_other_side():
    with pytest.raises(ValueError, match="no prompt was measured on both sides of the comparison with warm-up"):
        paired_difference({"a": 1.0}, {"b": 1.0}, "warm-up")


@pytest.mark.parametrize(("low", "high", "significant"), [(0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.3, False), (0.0, 0.3, False), (-0.3, 0.0, False)])
def test_a_difference_counts_where_its_interval_excludes_zero(low, high, significant):
    assert Difference(against="student", value=0.1, low=low, high=high).significant is significant


def test_a_summary_says_what_was_measured_and_how():
    found = summarise(prompts([1.0, 2.0, 6.0]), seed=8, metric="rouge_l", subject="warm-up", on="own responses", unit="F1", better="higher", decoding="greedy")
    assert (found.value, found.n, found.seed, found.split, found.decoding) == (3.0, 3, 8, "held-out", "greedy")
    assert found.differences == ()
    assert (found.value, found.low, found.high) == mean_and_interval([1.0, 2.0, 6.0], 8)


@pytest.mark.parametrize("differences", [(), (Difference(against="student", value=-0.1, low=-0.2, high=0.1), Difference(against="warm-up", value=0.3, low=0.1, high=1 / 3))])
def test_a_measurement_goes_through_json_and_back(differences):
    whole = measurement(differences=differences, seed=3, decoding="greedy, at most 8 tokens", value=1 / 3)
    assert Measurement.from_dict(whole.as_dict()) == whole
    back = Measurement.from_dict(json.loads(json.dumps(whole.as_dict())))
    assert back == whole
    assert hash(back) == hash(whole), "differences come back as a tuple"


def test_ratios_of_equal_noisy_times_are_one_in_the_geometric_mean():
    draw = random.Random(3)
    ratios = {str(i): math.exp(draw.gauss(0, 0.3)) / math.exp(draw.gauss(0, 0.3)) for i in range(4000)}
    assert sum(ratios.values()) / 4000 > 1.05
    found = around_geometric_mean(ratios)
    value, low, high = mean_and_interval(list(found.values()))
    assert value == pytest.approx(math.prod(one ** (1 / 4000) for one in ratios.values()))
    assert value == pytest.approx(1, abs=0.02)  # three standard errors; the arithmetic mean is at 1.09
    # the interval against the textbook's: the standard error of the logarithm's mean
    error = plain.stdev(math.log(one) for one in ratios.values()) / math.sqrt(4000)
    assert (low, high) == (pytest.approx(value * math.exp(-1.96 * error), abs=0.2 * error), pytest.approx(value * math.exp(1.96 * error), abs=0.2 * error))
    assert around_geometric_mean({"a": 2.0, "b": 2.0}) == pytest.approx({"a": 2.0, "b": 2.0})


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_agree_with_all_of_them(seed):
    generator = random.Random(seed)
    apart = [generator.gauss(0.3, 1) for _ in range(11)]
    sums = [abs(sum(sign * value for sign, value in zip(signs, apart, strict=True))) for signs in itertools.product((1, -1), repeat=len(apart))]
    exact = sum(one >= abs(sum(apart)) - 1e-9 for one in sums) / len(sums)
    assert paired_p(apart) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000) + 1e-4)


def test_p_is_small_where_all_differ_one_way_and_one_where_nothing_differs():
    assert paired_p([1.0] * 40) == pytest.approx(1 / 10_001)
    assert paired_p([0.0] * 5) == 1.0
    with pytest.raises(ValueError, match="no difference"):
        paired_p([])


def test_holm_by_hand():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.5}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
