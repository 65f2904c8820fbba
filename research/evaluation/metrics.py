"""Pixel metrics of the field over pooled pixels: AUROC, AP, F1-max and PRO (Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

PRO_LIMIT = 0.3  # false positive rate up to which PRO is integrated (Bergmann et al. 2020)


def pixel_metrics(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> dict[str, float]:
    """AUROC, AP and F1-max of flat arrays of the same length (any shape is flattened).

    Raises ValueError when only one class is present: none of the three is defined then.
    """
    scores, labels = np.ravel(scores), np.ravel(labels)
    if labels.all() or not labels.any():
        raise ValueError("AUROC, AP and F1-max need both defective and good pixels (or images).")
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "ap": float(average_precision_score(labels, scores)),
        "f1_max": float(f1.max()),
    }


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
