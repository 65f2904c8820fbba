"""Bounds of what may be judged, from the facts of good pictures (`stages.picture.FACTS`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# What a fact may always be beyond the good parts' own range, as cameras and lamps wander: absolute,
# then as a share of its largest value.
_SLACK = {
    "brightness": (6.0, 0.0),
    "contrast": (2.0, 0.1),
    "red": (4.0, 0.0),
    "blue": (4.0, 0.0),
    "sharpness": (0.1, 0.0),
    "x": (0.02, 0.0),
    "y": (0.02, 0.0),
    # A defect moves some tokens of a part, another product most of them. Of cookies the good ones
    # reached 0.012, broken ones 0.043, a frame shifted by a quarter 0.11, other products 0.17.
    "distance": (0.0, 4.0),
}


def bounds_of(facts: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """fact -> (low, high): the good parts' range and half of its width on either side.

    Of 31 normally distributed values the range is about 4 standard deviations wide, so the bounds
    are about 4 from the mean: one good part of thousands is refused.
    """
    bounds = {}
    for name in facts[0]:
        values = np.array([one[name] for one in facts])
        low, high = float(values.min()), float(values.max())
        absolute, share = _SLACK[name]
        slack = max((high - low) / 2, absolute, share * max(abs(low), abs(high)))
        bounds[name] = (low - slack, high + slack)
    return bounds
