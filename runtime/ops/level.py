"""The highest level at which a map still has a component of some size: exact, and quickly found."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

_SIDE = 128  # pixels a side of the smaller map that a search starts from
_PIXELS = 30  # that `area` is to be there, if half the size allows it
_BLOCK = 8  # pixels a side of a block that is looked at as one
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
        reach *= 2
    return lowest, None


def _large(values: Map, level: float, area: int) -> tuple[Map, float] | None:
    """The part of the map that holds every component of {values >= level} of `area` pixels; what
    belongs to none of them is -inf. And the highest level that as many pixels of one of them
    reach, above which the answer cannot lie. None where no component is as large."""
    mask = (values >= level).view(np.uint8)
    found, most = [], -np.inf
    for window in _windows(mask, area):  # what of others lies in one is a part, and adds nothing
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask[window], connectivity=8)
        kept = stats[:, cv2.CC_STAT_AREA] >= area
        kept[0] = False
        if not kept.any():
            continue
        inside, own = kept[labels], values[window]
        levels = own[inside]
        # Component by component, rising.
        ranked = levels[np.lexsort((levels, labels[inside]))]
        most = max(most, float(ranked[np.cumsum(stats[kept, cv2.CC_STAT_AREA]) - area].max()))
        found.append((*window, own, inside))
    if not found:
        return None
    top, bottom = min(ys.start for ys, *_ in found), max(ys.stop for ys, *_ in found)
    left, right = min(xs.start for _, xs, *_ in found), max(xs.stop for _, xs, *_ in found)
    rest = np.full((bottom - top, right - left), -np.inf, np.float32)
    for ys, xs, own, inside in found:
        part = rest[ys.start - top : ys.stop - top, xs.start - left : xs.stop - left]
        np.copyto(part, own, where=inside)
    return rest, most


def _windows(mask: NDArray[np.uint8], area: int) -> list[tuple[slice, slice]]:
    """Windows of a mask [H,W] of 0 and 1 that hold every component of `area` pixels, each whole in
    one of them. Labels take 20 times as long as it does to find the blocks of 8 x 8 pixels that
    anything touches, and most of what is above a level is smaller than `area`."""
    height, width = mask.shape
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    padded = np.zeros((_BLOCK * rows, _BLOCK * columns), np.uint8)
    padded[:height, :width] = mask
    eight = padded.view(np.uint64).reshape(rows, _BLOCK, columns)  # pixels side by side in one
    touched = (np.bitwise_or.reduce(eight, axis=1) != 0).view(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(touched, connectivity=8)
    boxes = [row[:4] * _BLOCK for row in stats[1:] if row[cv2.CC_STAT_AREA] * _BLOCK**2 >= area]
    if sum(int(w * h) for _, _, w, h in boxes) > mask.size:  # boxes within boxes
        boxes = [np.array([0, 0, width, height])]
    return [
        (slice(int(y), min(int(y + h), height)), slice(int(x), min(int(x + w), width)))
        for x, y, w, h in boxes
    ]
