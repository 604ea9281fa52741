"""A job runs as long as its money and its timeout both last, whatever the price."""

import math

import pytest

from hubdistill.errors import InputError
from hubdistill.hub.budget import budget, seconds_of, shown


@pytest.mark.parametrize(("text", "seconds"), [("6h", 21600), ("90m", 5400), ("1.5h", 5400), ("2d", 172800), ("300s", 300), (" 1h ", 3600)])
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "6", "h", "-6h", "0h", "6 hours", "6h30m", "1e3s", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InputError, match=r"--timeout: .* such as 6h"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("max_usd", "timeout", "price", "seconds"),
    [(20, None, 2.5, 8 * 3600), (20, "6h", 2.5, 6 * 3600), (10, "6h", 2.5, 4 * 3600), (1, "6h", 40, 90), (0.7, None, 0.7, 3600)],
)
def test_the_smaller_of_both_limits_stops_the_job(max_usd, timeout, price, seconds):
    found = budget(max_usd, timeout, price, "somebody's price")
    assert found.seconds == seconds
    assert found.at_most <= max_usd + 1e-9
    text = found.text()
    assert f"buys {shown(int(max_usd / price * 3600))}" in text
    assert (f"--timeout is {shown(seconds_of(timeout))}" if timeout else "no --timeout") in text
    assert f"stopped after {shown(seconds)}" in text
    assert "somebody's price" in text


@pytest.mark.parametrize("amount", [0, -1, math.nan, math.inf])
def test_amounts_that_are_none_are_refused(amount):
    with pytest.raises(InputError, match="--max-usd: must be an amount"):
        budget(amount, None, 2.5, "")
    with pytest.raises(InputError, match="--usd-per-hour: must be an amount"):
        budget(20, None, amount, "")


@pytest.mark.parametrize(("max_usd", "timeout"), [(0.01, None), (20, "30s")])
def test_a_budget_that_ends_before_the_machine_has_started_is_refused(max_usd, timeout):
    with pytest.raises(InputError, match="before the machine has started"):
        budget(max_usd, timeout, 2.5, "")
