"""AUROC, AP, F1-max and PRO of any number of pixels in a few megabytes, with a proven error.

    histogram = PixelHistogram()
    for score_map, mask in images:
        histogram.add(score_map, mask)
    metrics, errors = histogram.metrics(), histogram.errors()

A pixel is counted in the bin of its score and forgotten. Bins are cut on the score's floating-point
bits: 4096 bins an octave from 2**-40 to 1, so a map that lives below 1e-3 is resolved as finely as
one that fills 0..1. Every bin's edge is a threshold at which all counts are exact; only the order
of *different* scores within one bin is lost. `errors` bounds what that order can change, from the
counts themselves: whatever the scores were, |figure - exact figure| <= error. A bin that only ever
saw one score (a saturated map, a map of few levels) loses nothing and adds nothing to the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.research.evaluation.metrics import PRO_LIMIT

_SHIFT = 11  # of float32's 23 mantissa bits, 12 choose the bin: 4096 an octave
_FIRST = (127 - 40) << 12  # the bin of 2**-40; smaller scores share it
BINS = (127 << 12) - _FIRST + 1  # the last one holds 1.0 alone
_UNSEEN = np.uint32(0xFFFFFFFF)

_Counts = NDArray[np.int64]


@dataclass(frozen=True)
class _Curve:
    """Cumulated counts at every used bin's lower edge, highest score first; starts at zero."""

    true: NDArray[np.float64]  # defective pixels at or above the edge
    false: NDArray[np.float64]  # good ones
    overlap: NDArray[np.float64]  # summed over regions, not yet divided by their number
    mixed: NDArray[np.bool_]  # per step: whether the bin saw more than one score
    edges: NDArray[np.int64]  # bin numbers, per step


class PixelHistogram:
    """Counts of good and defective pixels and of region shares, by score."""

    def __init__(self) -> None:
        self._good: _Counts = np.zeros(BINS, np.int64)
        self._defective: _Counts = np.zeros(BINS, np.int64)
        self._overlap = np.zeros(BINS, np.float64)
        self._first = np.full(BINS, _UNSEEN, np.uint32)  # bits of the first score seen in a bin
        self._mixed = np.zeros(BINS, np.bool_)
        self._range = (np.inf, -np.inf)
        self.regions = 0

    @property
    def complete(self) -> bool:
        """Whether both kinds of pixels were seen, so that the metrics are defined."""
        return bool(self._good.any() and self._defective.any())

    def add(self, score_map: NDArray[np.floating[Any]], mask: NDArray[Any]) -> None:
        """Count one image: `score_map` [H,W] in [0,1], `mask` [H,W], non-zero where defective.

        A region is an 8-connected component of the mask. Raises ValueError for scores outside
        [0,1] (not a number included) or another shape.
        """
        scores = np.ascontiguousarray(score_map, np.float32)
        defective = np.asarray(mask) != 0
        if scores.shape != defective.shape or scores.ndim != 2:
            raise ValueError(f"a map of {scores.shape} and a mask of {defective.shape}: same [H,W]")
        low, high = float(scores.min()), float(scores.max())
        if not 0 <= low <= high <= 1:  # false for NaN
            raise ValueError(f"scores from {low} to {high}: they must lie in [0,1]")
        self._range = (min(self._range[0], low), max(self._range[1], high))
        bits = np.ravel(np.abs(scores)).view(np.uint32)  # abs: -0.0 is 0.0 (and a copy)
        bins = np.maximum((bits >> _SHIFT).astype(np.int64) - _FIRST, 0)
        self._note_mixed(bits, bins)
        counts = np.bincount(bins, minlength=BINS)
        if defective.any():
            there = np.ravel(defective)
            share, found = _shares(defective)
            self.regions += found
            inside = bins[there]
            positive = np.bincount(inside, minlength=BINS)
            self._overlap += np.bincount(inside, share[there], minlength=BINS)
            self._defective += positive
            counts = counts - positive
        self._good += counts

    def _note_mixed(self, bits: NDArray[np.uint32], bins: _Counts) -> None:
        open_ = np.flatnonzero(~self._mixed[bins])  # soon few: most bins turn out mixed early
        if not len(open_):
            return
        bits, bins = bits[open_], bins[open_]
        fresh = self._first[bins] == _UNSEEN
        self._first[bins[fresh]] = bits[fresh]
        self._mixed[bins[self._first[bins] != bits]] = True

    def __add__(self, other: PixelHistogram) -> PixelHistogram:
        """The histogram of both sets of images."""
        total = PixelHistogram()
        total._good = self._good + other._good
        total._defective = self._defective + other._defective
        total._overlap = self._overlap + other._overlap
        both = (self._first != _UNSEEN) & (other._first != _UNSEEN)
        total._mixed = self._mixed | other._mixed | (both & (self._first != other._first))
        total._first = np.where(self._first == _UNSEEN, other._first, self._first)
        total._range = (
            min(self._range[0], other._range[0]),
            max(self._range[1], other._range[1]),
        )
        total.regions = self.regions + other.regions
        return total

    def metrics(self, limit: float = PRO_LIMIT) -> dict[str, float]:
        """auroc, ap, f1_max and pro, scores of one bin taken as equal.

        Raises ValueError when only one kind of pixel was seen.
        """
        c = self._curve()
        positives, negatives = c.true[-1], c.false[-1]
        gained = np.diff(c.true)
        precision = c.true[1:] / (c.true[1:] + c.false[1:])
        x, y = c.false / negatives, c.overlap / self.regions
        keep = x <= limit
        area = np.trapezoid(np.append(y[keep], np.interp(limit, x, y)), np.append(x[keep], limit))
        return {
            "auroc": float(np.trapezoid(c.true, c.false) / (positives * negatives)),
            "ap": float((gained * precision).sum() / positives),
            "f1_max": float(_f1(c.true[1:], c.false[1:], positives).max()),
            "pro": float(area / limit),
        }

    def errors(self, limit: float = PRO_LIMIT) -> dict[str, float]:
        """For each of `metrics` a bound on its distance from the exact figure.

        Within a bin that saw several scores the true curve is an unknown monotone path from the
        bin's one corner to the other; each bound is the worst such path.
        """
        c = self._curve()
        positives, negatives = c.true[-1], c.false[-1]
        p, n = np.diff(c.true) * c.mixed, np.diff(c.false) * c.mixed
        auroc = 0.5 * (p * n).sum() / (positives * negatives)

        # AP. Best: the bin's defective pixels tie, alone, before its good ones. Worst: they come
        # one by one after all its good ones; a sum of a rising function is at least its integral.
        tp, fp = c.true[:-1], c.false[:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            here = p * (tp + p) / (tp + p + fp + n)
            best = p * (tp + p) / (tp + p + fp)
            worst = p - (fp + n) * np.log1p(p / (tp + fp + n))
        split = (p > 0) & (n > 0) | (p > 1)
        gain = np.where(split, best - here, 0).sum()
        loss = np.where(split, here - np.maximum(np.nan_to_num(worst), 0), 0).sum()
        ap = max(gain, loss) / positives

        highest = _f1(tp + p, fp, positives)[c.mixed].max(initial=0)  # thresholds within a bin
        f1 = max(0.0, float(highest - _f1(c.true[1:], c.false[1:], positives).max()))
        return {
            "auroc": float(auroc),
            "ap": float(ap),
            "f1_max": f1,
            "pro": self._pro_error(c, limit),
        }

    def pro_200(self, limit: float = PRO_LIMIT) -> float:
        """PRO as most published zero-shot tables compute it.

        Unlike "pro" of `metrics`, it tries 200 evenly spaced thresholds only (here moved up to the
        next edge of a bin), ends the curve at the last of them below `limit`, and stretches the
        false positive rates that are left over 0..1.
        """
        c = self._curve()
        low, high = self._range
        thresholds = low + (high - low) / 200 * np.arange(200)
        at = np.maximum(
            (thresholds.astype(np.float32).view(np.uint32) >> _SHIFT).astype(np.int64) - _FIRST, 0
        )
        above = np.searchsorted(-c.edges, -at, side="left")  # steps with a bin above the threshold
        rate, overlap = c.false[above] / c.false[-1], c.overlap[above] / self.regions
        return normalised_area(rate, overlap, limit)

    def _curve(self) -> _Curve:
        if not self.complete:
            raise ValueError("the metrics need both defective and good pixels")
        used = np.flatnonzero(self._good + self._defective)[::-1]
        zero = np.zeros(1)
        return _Curve(
            np.append(zero, np.cumsum(self._defective[used])),
            np.append(zero, np.cumsum(self._good[used])),
            np.append(zero, np.cumsum(self._overlap[used])),
            self._mixed[used],
            used,
        )

    def _pro_error(self, c: _Curve, limit: float) -> float:
        x, y = c.false / c.false[-1], c.overlap / self.regions
        width, height = np.diff(x), np.diff(y)
        whole = c.mixed & (x[1:] <= limit)
        error = 0.5 * (width * height)[whole].sum()
        cut = np.flatnonzero(c.mixed & (x[:-1] < limit) & (x[1:] > limit))
        for i in cut:  # at most one: the bin in which the limit lies
            inside = limit - x[i]
            drawn = 0.5 * inside * height[i] * inside / width[i]
            error += max(drawn, height[i] * inside - drawn)
        return float(error / limit)


def normalised_area(rate: NDArray[np.float64], overlap: NDArray[np.float64], limit: float) -> float:
    """The area under the points with a rate below `limit`, these stretched over 0..1.

    The points are in order of rising threshold (falling rate). Not a number with fewer than two.
    """
    kept = rate < limit
    rate, overlap = rate[kept], overlap[kept]
    if len(rate) < 2 or rate.max() == rate.min():
        return float("nan")
    stretched = (rate - rate.min()) / (rate.max() - rate.min())
    return float(abs(np.trapezoid(overlap, stretched)))


def _shares(defective: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """What each pixel adds to its region's overlap (1 / area, flat), and the regions' number."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        defective.astype(np.uint8), connectivity=8
    )
    share = np.zeros(count, np.float64)
    share[1:] = 1 / stats[1:, cv2.CC_STAT_AREA]
    return share[labels].ravel(), count - 1


def _f1(
    true: NDArray[np.float64], false: NDArray[np.float64], positives: np.float64
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 2 * true / (true + false + positives)
    return found
