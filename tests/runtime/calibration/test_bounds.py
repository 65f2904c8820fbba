"""The promise: exact binomial bounds, against sums by hand and against draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipsam.runtime.calibration.bounds import (
    false_alarm_bound,
    limit_of,
    most_above,
    parts_needed,
    recall_bounds,
)


@pytest.mark.parametrize(("rate", "parts"), [(0.05, 59), (0.02, 149), (0.01, 299)])
def test_the_parts_that_a_rate_takes(rate: float, parts: int) -> None:
    assert parts_needed(rate, 0.95) == parts
    assert most_above(parts, rate, 0.95) == 0
    assert most_above(parts - 1, rate, 0.95) is None
    assert false_alarm_bound(parts, 0, 0.95) <= rate < false_alarm_bound(parts - 1, 0, 0.95)


@pytest.mark.parametrize("parts", [1, 20, 31, 150, 3000])
@pytest.mark.parametrize("above", [0, 1, 5, 19])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_bound_is_clopper_pearsons(parts: int, above: int, confidence: float) -> None:
    bound = false_alarm_bound(parts, above, confidence)
    if above >= parts:
        assert bound == 1
        return
    sums = sum(
        math.comb(parts, k) * bound**k * (1 - bound) ** (parts - k) for k in range(above + 1)
    )
    assert sums == pytest.approx(1 - confidence, rel=1e-6)


def test_more_parts_allow_more_above() -> None:
    found = [most_above(n, 0.05, 0.95) for n in (58, 59, 92, 93, 124, 1000)]
    assert found == [None, 0, 0, 1, 2, 38]
    for n, k in ((93, 1), (1000, 38)):
        assert false_alarm_bound(n, k, 0.95) <= 0.05 < false_alarm_bound(n, k + 1, 0.95)


def test_the_limit_is_an_order_statistic() -> None:
    scores = np.array([0.3, 0.9, 0.1, 0.9, 0.5])
    assert [limit_of(scores, k) for k in range(4)] == [0.9, 0.9, 0.5, 0.3]
    for k in range(4):
        assert (scores > limit_of(scores, k)).sum() <= k


@pytest.mark.parametrize(("parts", "rate"), [(59, 0.05), (93, 0.05), (150, 0.02), (20, 0.14)])
def test_the_promise_holds_in_95_of_100_draws(parts: int, rate: float) -> None:
    """Whatever the distribution: here uniform, of which the share above a limit is known."""
    above = most_above(parts, rate, 0.95)
    assert above is not None
    rng = np.random.default_rng(0)
    kept = [1 - limit_of(rng.random(parts), above) <= rate for _ in range(4000)]
    assert np.mean(kept) >= 0.94


def test_the_bounds_of_a_recall() -> None:
    low, high = recall_bounds(30, 32, 0.95)
    assert (low, high) == pytest.approx((0.7919, 0.9923), abs=1e-4)  # as tables have it
    assert recall_bounds(0, 10, 0.95)[0] == 0
    assert recall_bounds(10, 10, 0.95)[1] == 1
