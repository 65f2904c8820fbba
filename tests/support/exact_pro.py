"""PRO by sorting every pixel, which the streamed figure is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.research.evaluation.metrics import PRO_LIMIT


def pro_score(
    maps: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[Any]],
    limit: float = PRO_LIMIT,
) -> float:
    """Per-region overlap, the mean over all defects of the share found, against the false positive
    rate over all good pixels, integrated up to `limit` and divided by it.

    `maps` and `masks` (non-zero: defective) are lists of [H,W]; a region is an 8-connected
    component of a mask. Exact: every distinct score is a threshold, points in between are joined
    by straight lines. Raises ValueError without a region or without a good pixel.
    """
    weights, regions = [], 0
    for mask in masks:
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            (np.asarray(mask) != 0).astype(np.uint8), connectivity=8
        )
        share = np.zeros(count, np.float64)  # what a pixel adds to its region's overlap
        share[1:] = 1 / stats[1:, cv2.CC_STAT_AREA]
        weights.append(share[labels].ravel())
        regions += count - 1
    weight = np.concatenate(weights)
    good = weight == 0
    if not regions or not good.any():
        raise ValueError("PRO needs a defective region and good pixels.")
    scores = np.concatenate([np.ravel(m) for m in maps])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores pass a threshold together
    overlap = np.append(0, (np.cumsum(weight[order]) / regions)[last])
    rate = np.append(0, (np.cumsum(good[order]) / good.sum())[last])
    inside = rate <= limit
    at_limit = np.interp(limit, rate, overlap)
    x = np.append(rate[inside], limit)
    y = np.append(overlap[inside], at_limit)
    return float(np.trapezoid(y, x) / limit)
