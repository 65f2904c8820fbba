"""Whether the scores of recent good parts still are what they were when the limit was set.

Defects are expected and no drift, so only scores up to the limit are compared, on both sides:
the distance of Kolmogorov and Smirnov between the last 300 of them and the calibration's. It takes
a distance that is large as well as certain to raise an alarm, since the test is made again and
again; and it ends only when the distance has become clearly smaller.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WINDOW = 300  # parts
_FEWEST = 50  # scores on either side, below which nothing is said
_EVERY = 10  # parts between two tests
_DISTANCE, _OVER = 0.3, 0.2  # raises, and ends
_CHANCE = 1e-6  # of as large a distance without drift


class Drift:
    """The recent scores beside the calibration's."""

    def __init__(self, reference: Sequence[float], limit: float) -> None:
        """`reference`: scores of good parts that were held out when the limit was set."""
        self._limit = limit
        self._reference = np.sort([score for score in reference if score <= limit])
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._seen = 0
        self._distance: float | None = None
        self._chance: float | None = None
        self.alarmed = False

    def add(self, score: float) -> str | None:
        """Take in a part's score; a sentence when drift begins, "" when it ends, else None."""
        if not score <= self._limit:
            return None
        self._recent.append(score)
        self._seen += 1
        if self._seen % _EVERY or min(len(self._recent), len(self._reference)) < _FEWEST:
            return None
        recent = np.sort(self._recent)
        self._distance = _distance(self._reference, recent)
        self._chance = _chance(self._distance, len(self._reference), len(recent))
        if not self.alarmed and self._distance > _DISTANCE and self._chance < _CHANCE:
            self.alarmed = True
            return (
                f"scores of good parts have moved from {np.median(self._reference):.3g} to "
                f"{np.median(recent):.3g} (medians): look at lamp, lens, focus and material, then "
                "calibrate again."
            )
        if self.alarmed and self._distance < _OVER:
            self.alarmed = False
            return ""
        return None

    def to_dict(self) -> dict[str, Any]:
        """What the last test found, in JSON's types."""
        return {
            "alarm": self.alarmed,
            "distance": self._distance,
            "chance": self._chance,
            "recent": len(self._recent),
            "recent_median": float(np.median(self._recent)) if self._recent else None,
            "reference": len(self._reference),
            "reference_median": (
                float(np.median(self._reference)) if len(self._reference) else None
            ),
        }


def _distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Of two sorted samples: the largest difference of their cumulative shares."""
    values = np.concatenate([first, second])
    shares = [np.searchsorted(side, values, "right") / len(side) for side in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def _chance(distance: float, first: int, second: int) -> float:
    """Of at least this distance between samples of one distribution; for large samples."""
    root = math.sqrt(first * second / (first + second))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.3:  # the series does not converge, and it is 1 to five digits
        return 1.0
    terms = ((-1.0) ** (j - 1) * math.exp(-2 * (j * scaled) ** 2) for j in range(1, 101))
    return min(1.0, max(0.0, 2 * math.fsum(terms)))
