"""The highest level at which a map still has a component of some size: exact, and quickly found."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

_SIDE = 128  # pixels a side of the smaller map that a search starts from
_STEP = 0.004  # how far from that map's answer the whole map's is looked for first


def component_level(values: Map, area: int) -> float:
    """The largest L for which {values >= L} has an 8-connected component of `area` pixels.

    `values` float32 [H,W], finite; `area` between 1 and H x W. So {values > t} has a component of
    that size exactly when `component_level(values, area) > t`, for any t.
    """
    if area <= 1:
        return float(values.max())
    low, high = _bracket(values, area)
    values = _large(values, low, area)
    # Of all levels only values of the map differ. The lowest of them holds, by the bracket.
    levels = np.unique(values[(values >= low) & (values < high)])
    first, last = 0, len(levels)
    while last - first > 1:
        middle = (first + last) // 2
        smaller = _holding(values, float(levels[middle]), area)
        if smaller is None:
            last = middle
        else:
            first, values = middle, smaller
    return float(levels[first])


def below(limit: float) -> np.float32:
    """The largest float32 that is not above `limit`: float32 values exceed both or neither.

    NumPy rounds the limit to the nearest when it compares an array with it, which may be above.
    """
    rounded: np.float32 = np.float32(limit)
    if float(rounded) > limit:
        rounded = np.float32(np.nextafter(rounded, np.float32(-np.inf)))
    return rounded


def _bracket(values: Map, area: int) -> tuple[float, float]:
    """(low, high): `area` holds at low, and not at high."""
    low, high = float(values.min()), float("inf")
    step = int(values.size**0.5) // _SIDE
    if step < 2:
        return low, high
    smaller = np.ascontiguousarray(values[::step, ::step])
    guess = component_level(smaller, max(1, round(area / step**2)))
    reach = _STEP
    while guess - reach > low:
        if _holds(values, guess - reach, area):
            low = guess - reach
            break
        high, reach = guess - reach, 4 * reach
    reach = _STEP
    while guess + reach < high:
        if not _holds(values, guess + reach, area):
            high = guess + reach
            break
        low, reach = guess + reach, 4 * reach
    return low, high


def _large(values: Map, level: float, area: int) -> Map:
    """The part of the map that holds every component of {values >= level} of `area` pixels; what
    belongs to none of them is -inf."""
    window, labels, stats = _components(values, level)
    kept = stats[:, cv2.CC_STAT_AREA] >= area
    kept[0] = False
    return np.where(kept[labels], values[window], np.float32(-np.inf))


def _holding(values: Map, level: float, area: int) -> Map | None:
    """The window of the map around all components of {values >= level} of `area` pixels, outside
    which no higher level has one; None where there is none. A view."""
    window, _, stats = _components(values, level)
    large = stats[1:][stats[1:, cv2.CC_STAT_AREA] >= area]
    if not len(large):
        return None
    left, top = large[:, cv2.CC_STAT_LEFT], large[:, cv2.CC_STAT_TOP]
    right, bottom = left + large[:, cv2.CC_STAT_WIDTH], top + large[:, cv2.CC_STAT_HEIGHT]
    return values[window][top.min() : bottom.max(), left.min() : right.max()]


def _holds(values: Map, level: float, area: int) -> bool:
    """Whether {values >= level} has a component of `area` pixels."""
    stats = _components(values, level)[2]
    return bool(stats[1:, cv2.CC_STAT_AREA].max(initial=0) >= area)


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
