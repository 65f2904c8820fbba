"""The highest level at which a map still has a component of some size: exact, and quickly found."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

_SIDE = 128  # pixels a side of the smaller map that a search starts from
_PIXELS = 30  # that `area` is to be there, if half the size allows it
_STEP = 0.004  # how far from that map's answer the whole map's is looked for first


def component_level(values: Map, area: int) -> float:
    """The largest L for which {values >= L} has an 8-connected component of `area` pixels.

    `values` float32 [H,W], finite; `area` between 1 and H x W. So {values > t} has a component of
    that size exactly when `component_level(values, area) > t`, for any t.
    """
    if area <= 1:
        return float(values.max())
    low, found = _start(values, area)
    if found is None:  # at the lowest level all of the map is one component
        ranked = np.partition(values.ravel(), values.size - area)
        low, found = float(values.min()), (values, float(ranked[-area]))
    values, most = found
    # Of all levels only values of the map differ; the answer is at least `low` and at most `most`.
    levels = np.unique(values[(values >= low) & (values <= most)])
    first, last, halve = 0, len(levels), False
    while last - first > 1:
        probe = last - 1  # where one peak is all there is, that is the answer
        if halve:
            middle = float(levels[first]) + float(levels[last - 1] - levels[first]) / 2
            probe = min(max(int(np.searchsorted(levels, middle)), first + 1), last - 1)
        found = _large(values, float(levels[probe]), area)
        if found is None:
            last, halve = probe, True
        else:
            first, (values, most), halve = probe, found, False
            last = min(last, int(np.searchsorted(levels, most, "right")))
    return float(levels[first])


def below(limit: float) -> np.float32:
    """The largest float32 that is not above `limit`: float32 values exceed both or neither.

    NumPy rounds the limit to the nearest when it compares an array with it, which may be above.
    """
    rounded: np.float32 = np.float32(limit)
    if float(rounded) > limit:
        rounded = np.float32(np.nextafter(rounded, np.float32(-np.inf)))
    return rounded


def _start(values: Map, area: int) -> tuple[float, tuple[Map, float] | None]:
    """A level somewhat below the answer and what is large there (None where none was found).

    The answer of a smaller map, in which `area` still is some pixels, says where to look.
    """
    lowest = float(values.min())
    step = int(values.size**0.5) // _SIDE
    if step < 2:
        return lowest, None
    step = min(step, max(2, int((area / _PIXELS) ** 0.5)))
    smaller = np.ascontiguousarray(values[::step, ::step])
    guess, reach = component_level(smaller, max(1, round(area / step**2))), _STEP
    while guess - reach > lowest:
        found = _large(values, guess - reach, area)
        if found is not None:
            return guess - reach, found
        reach *= 4
    return lowest, None


def _large(values: Map, level: float, area: int) -> tuple[Map, float] | None:
    """The part of the map that holds every component of {values >= level} of `area` pixels; what
    belongs to none of them is -inf. And the highest level that as many pixels of one of them
    reach, above which the answer cannot lie. None where no component is as large."""
    window, labels, stats = _components(values, level)
    kept = stats[:, cv2.CC_STAT_AREA] >= area
    kept[0] = False
    large = stats[kept]
    if not len(large):
        return None
    left, top = large[:, cv2.CC_STAT_LEFT], large[:, cv2.CC_STAT_TOP]
    right, bottom = left + large[:, cv2.CC_STAT_WIDTH], top + large[:, cv2.CC_STAT_HEIGHT]
    part = slice(top.min(), bottom.max()), slice(left.min(), right.max())
    labels, values = labels[part], values[window][part]
    inside = kept[labels]
    levels = values[inside]
    ranked = levels[np.lexsort((levels, labels[inside]))]  # component by component, rising
    most = float(ranked[np.cumsum(large[:, cv2.CC_STAT_AREA]) - area].max())
    return np.where(inside, values, np.float32(-np.inf)), most


def _components(
    values: Map, level: float
) -> tuple[tuple[slice, slice], NDArray[np.int32], NDArray[np.int32]]:
    """The window of the map that holds {values >= level}, OpenCV's labels in it and statistics."""
    mask = (values >= level).view(np.uint8)
    x, y, width, height = cv2.boundingRect(mask)
    window = slice(y, y + height), slice(x, x + width)
    if not width:
        return window, np.zeros((0, 0), np.int32), np.zeros((1, 5), np.int32)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask[window], connectivity=8)
    return window, np.asarray(labels, np.int32), np.asarray(stats, np.int32)
