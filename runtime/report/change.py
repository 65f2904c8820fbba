"""Where a line got better or worse: the one split of a series that its values speak for most."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SURE = 1e-6  # neighbouring parts resemble each other, so the usual 0.01 would cry wolf
SHORTEST = 20  # values on either side


class Change(NamedTuple):
    """The values from `start` on differ from those before; means on either side."""

    start: int
    before: float
    after: float


def find_change(values: NDArray[np.float64], ranked: bool = False) -> Change | None:
    """The most likely change of the mean of `values`, in their order in time, or None.

    CUSUM: the largest sum of deviations from the mean; for equal and independent values it is, in
    units of their deviation and sqrt(n), at most x with Kolmogorov's probability, whose tail is
    2 exp(-2 x^2). `ranked` compares ranks instead, so that a few extreme values decide nothing.
    """
    n = len(values)
    if n < 2 * SHORTEST:
        return None
    compared = _ranks(values) if ranked else values
    deviation = float(compared.std())
    if deviation == 0:
        return None
    sums = np.abs(np.cumsum(compared - compared.mean()))[SHORTEST - 1 : n - SHORTEST]
    at = int(sums.argmax())
    x = sums[at] / (deviation * math.sqrt(n))
    if 2 * math.exp(-2 * x * x) > SURE:
        return None
    start = at + SHORTEST
    before, after = values[:start], values[start:]
    middle = np.median if ranked else np.mean
    return Change(start, float(middle(before)), float(middle(after)))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse], np.float64)
