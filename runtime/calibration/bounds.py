"""What n good parts promise about false alarms: exact binomial bounds, no approximation.

The limit is one of the scores seen, so that k of n good parts score above it. Whatever the scores'
distribution, the share p of all good parts above it obeys P(p > b) <= 1 - confidence for the b at
which Binomial(n, b) has k or fewer with probability 1 - confidence (Clopper and Pearson). The parts
must be drawn as those to come will be: another lamp or supplier is another distribution.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def false_alarm_bound(parts: int, above: int, confidence: float) -> float:
    """The share of good parts above a limit that `above` of `parts` exceed, at most, at this
    confidence. 1 where nothing can be said."""
    if above >= parts:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):  # halving down to less than a float's precision matters
        middle = (low + high) / 2
        if _at_most(above, parts, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def most_above(parts: int, rate: float, confidence: float) -> int | None:
    """How many of the parts may score above the limit that promises `rate`; None: too few parts."""
    found = None
    for above in range(parts):
        if false_alarm_bound(parts, above, confidence) > rate:
            break
        found = above
    return found


def parts_needed(rate: float, confidence: float) -> int:
    """The fewest good parts that can promise `rate`: 59, 149 and 299 for 5, 2 and 1 % at 95 %."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate))


def limit_of(scores: NDArray[np.float64], above: int) -> float:
    """The score that `above` of the scores exceed; of ties, fewer do."""
    return float(np.sort(scores)[len(scores) - 1 - above])


def recall_bounds(found: int, parts: int, confidence: float) -> tuple[float, float]:
    """Two-sided Clopper-Pearson bounds of a share of which `found` of `parts` were seen."""
    each = (1 + confidence) / 2
    high = false_alarm_bound(parts, found, each)
    low = 1 - false_alarm_bound(parts, parts - found, each)
    return low, high


def _at_most(most: int, parts: int, share: float) -> float:
    """P(Binomial(parts, share) <= most)."""
    if share in (0.0, 1.0):
        return 1.0 if share == 0 else float(most >= parts)
    logs = [
        math.lgamma(parts + 1)
        - math.lgamma(k + 1)
        - math.lgamma(parts - k + 1)
        + k * math.log(share)
        + (parts - k) * math.log1p(-share)
        for k in range(most + 1)
    ]
    return math.fsum(map(math.exp, logs))
