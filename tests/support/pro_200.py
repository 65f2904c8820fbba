"""PRO with 200 thresholds, threshold by threshold and region by region, as most published zero-shot
tables were computed: the slow form that `PixelHistogram.pro_200` is held against.

It differs from `exact_pro.pro_score` in three ways: only 200 evenly spaced thresholds are tried,
the curve ends at the last of them below the limit instead of at the limit, and the false positive
rates
that are left are stretched over 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

THRESHOLDS = 200


def pro_200(
    maps: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[Any]],
    limit: float = 0.3,
) -> float:
    """`maps` and `masks` are lists of [H,W]."""
    regions = []  # (image, pixels of one region)
    for number, mask in enumerate(masks):
        count, labels = cv2.connectedComponents((np.asarray(mask) != 0).astype(np.uint8))
        regions += [(number, np.nonzero(labels == label)) for label in range(1, count)]
    good = sum(int((np.asarray(mask) == 0).sum()) for mask in masks)
    low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
    rates, overlaps = [], []
    for threshold in low + (high - low) / THRESHOLDS * np.arange(THRESHOLDS):
        found = [score > np.float32(threshold) for score in maps]
        overlaps.append(np.mean([found[image][pixels].mean() for image, pixels in regions]))
        false = sum(
            int((hit & (np.asarray(mask) == 0)).sum())
            for hit, mask in zip(found, masks, strict=True)
        )
        rates.append(false / good)
    points = sorted((x, y) for x, y in zip(rates, overlaps, strict=True) if x < limit)
    x, y = np.array(points).T
    return float(np.trapezoid(y, (x - x.min()) / (x.max() - x.min())))
