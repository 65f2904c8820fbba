"""Pillow's antialiased bilinear resize, bit for bit, with NumPy and OpenCV.

SAM's own predictor resizes with Pillow. Matching it exactly makes stage two agree with
`SamPredictor` to the last bit of its input, without Pillow on the box. Pillow's method
(`Resample.c`): triangle-filter weights in 22-bit fixed point, a horizontal and a
vertical pass, each rounded to uint8.

A pass is a product with a banded matrix, which BLAS computes in float32 several times faster than
NumPy adds up integers. Its rounding errors are bounded beforehand (`margin`): a sum that rounds to
the same uint8 with the margin added and taken away is Pillow's, and the few others, about one in
two thousand, are added up again in integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

_PRECISION = 32 - 8 - 2  # bits of a weight, as in Pillow
_SHORT = 14  # bits of a weight with which float32 sums of pixels are exact
# Outputs of a pass in one product, when shrinking and when enlarging: with more of them the matrix
# is mostly zeros, with fewer BLAS is slow.
_OUTPUTS = (16, 32)
_CHUNK = 1 << 19  # float32 values in hand at a time, so that they stay in a core's caches

Pixels = NDArray[np.uint8]


def resize_bilinear(image: Pixels, height: int, width: int) -> Pixels:
    """uint8 [H,W,3] -> [height,width,3], equal to Pillow's `Image.resize(..., BILINEAR)`."""
    # The order shows in the last bit, as each pass rounds. Pillow 13 runs the vertical pass first
    # when the height loses over twice the pixels that the width does; before, never.
    lost_rows, lost_columns = image.shape[0] - height, image.shape[1] - width
    if lost_rows > max(0, 2 * lost_columns):
        image = _resize_rows(image, height)
    if image.shape[1] == width:
        return _resize_rows(image, height)
    planes = _resize_rows(_resize_columns(image, width), height)
    return np.asarray(cv2.merge([planes[:, channel] for channel in range(3)]), np.uint8)


@dataclass(frozen=True)
class _Product:
    """Some outputs of a pass as a matrix times the sources they are made of."""

    outputs: slice
    sources: slice
    weights: NDArray[np.float32]  # [outputs,sources], 1 being 1


@dataclass(frozen=True)
class _Filters:
    """Every output of a pass: exactly, and as products."""

    index: NDArray[np.intp]  # [new,k] sources
    weight: NDArray[np.int32]  # [new,k] in fixed point
    products: tuple[_Product, ...]
    short: NDArray[np.bool_]  # [new] whether the weights are so short that float32 sums are exact

    @property
    def margin(self) -> float:
        """More than a float32 sum of the k products can be off, in units of a pixel's value.

        k products of 255 in all, each rounded and added with an error of 2**-24 of that; adding
        the margin itself rounds once more. 0 if nearly every sum is exact, as when a side is
        halved: sums half-way between two values are frequent then, and none is in doubt.
        """
        if np.count_nonzero(self.short) >= 0.9 * len(self.short):
            return 0.0
        return float(self.index.shape[1] + 4) * 2.0**-16

    def exact(self, outputs: NDArray[np.intp], *pixels: NDArray[np.generic]) -> Pixels:
        """Pillow's values of `outputs`; `pixels` are their sources, one array [outputs] a tap."""
        total = np.full(len(outputs), 1 << (_PRECISION - 1), np.int32)
        for tap, values in enumerate(pixels):
            total += values.astype(np.int32) * self.weight[outputs, tap]
        total >>= _PRECISION
        return np.clip(total, 0, 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _filters(old: int, new: int) -> _Filters:
    """The triangle filters from `old` to `new` samples, by the arithmetic of Pillow."""
    scale = old / new
    support = max(scale, 1.0)  # of the triangle filter, widened when shrinking
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum(0, (centre - support + 0.5).astype(np.intp))
    stop = np.minimum(old, (centre + support + 0.5).astype(np.intp))
    index = first[:, None] + np.arange((stop - first).max())
    position = (index - centre[:, None] + 0.5) * (1.0 / support)
    values = np.maximum(0.0, 1.0 - np.abs(position))
    values[index >= stop[:, None]] = 0
    total = np.zeros(new)
    for tap in range(values.shape[1]):  # one after the other: the sum's last bit counts
        total += values[:, tap]
    weight = (values / total[:, None] * (1 << _PRECISION) + 0.5).astype(np.int32)
    index = np.minimum(index, old - 1)  # where the weight is 0
    short = ~(weight & ((1 << (_PRECISION - _SHORT)) - 1)).any(axis=1)
    return _Filters(index, weight, tuple(_products(index, weight)), short)


def pillow_taps(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For each of `new` outputs the samples it is made of, and their weights, both [new,k].

    Pillow's weights are exact in float32; where one is 0, its sample may be any.
    """
    filters = _filters(old, new)
    return filters.index, filters.weight * np.float32(2.0**-_PRECISION)


def _products(index: NDArray[np.intp], weight: NDArray[np.int32]) -> list[_Product]:
    products = []
    step = _OUTPUTS[int(index.max()) < len(index)]
    for top in range(0, len(index), step):
        columns, values = index[top : top + step], weight[top : top + step]
        left = columns.min()
        matrix = np.zeros((len(columns), columns.max() + 1 - left), np.float32)
        rows = np.arange(len(columns))[:, None]
        # Added, as the last source stands for every source beyond the end, with no weight.
        np.add.at(matrix, (rows, columns - left), values * np.float32(2.0**-_PRECISION))
        sources = slice(int(left), int(left) + matrix.shape[1])
        products.append(_Product(slice(top, top + len(columns)), sources, matrix))
    return products


def _resize_columns(image: Pixels, new: int) -> Pixels:
    """[H,W,3] -> [H,3,new]: the channels come apart, as BLAS wants a row's values side by side."""
    height, width = image.shape[:2]
    filters = _filters(width, new)
    resized = np.empty((height, 3, new), np.uint8)
    step = min(height, max(1, _CHUNK // (3 * width)))
    values = np.empty((3 * step, width), np.float32)
    sums = np.empty((3 * step, new), np.float32)
    for top in range(0, height, step):
        count = min(step, height - top)
        part = np.ascontiguousarray(image[top : top + count])
        for channel, plane in enumerate(cv2.split(part)):
            values[channel * count :][:count] = plane
        lines, made = values[: 3 * count], sums[: 3 * count]
        for product in filters.products:
            np.matmul(lines[:, product.sources], product.weights.T, out=made[:, product.outputs])
        rounded, unsure = _round(made, filters.margin, ~filters.short)
        line, output = np.divmod(unsure, new)
        taps = (lines[line, source] for source in filters.index[output].T)
        rounded.reshape(-1)[unsure] = filters.exact(output, *taps)
        resized[top : top + count] = rounded.reshape(3, count, new).transpose(1, 0, 2)
    return resized


def _resize_rows(image: Pixels, new: int) -> Pixels:
    """Resize the first axis of [H,...] to `new`."""
    if image.shape[0] == new:
        return image
    lines = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    filters = _filters(len(lines), new)
    resized = np.empty((new, lines.shape[1]), np.uint8)
    for product in filters.products:
        step = max(1, _CHUNK // product.weights.shape[1])
        long = ~filters.short[product.outputs, None]
        for left in range(0, lines.shape[1], step):
            part = lines[:, left : left + step]
            sums = product.weights @ part[product.sources].astype(np.float32)
            rounded, unsure = _round(sums, filters.margin, long)
            output, column = np.divmod(unsure, part.shape[1])
            output += product.outputs.start
            taps = (part[source, column] for source in filters.index[output].T)
            rounded.reshape(-1)[unsure] = filters.exact(output, *taps)
            resized[product.outputs, left : left + step] = rounded
    return resized.reshape(new, *image.shape[1:])


def _round(
    sums: NDArray[np.float32], margin: float, inexact: NDArray[np.bool_]
) -> tuple[Pixels, NDArray[np.intp]]:
    """Sums rounded to uint8, and the flat indices of those that may have to round otherwise.

    `inexact` tells, where there is no margin, which sums are nevertheless not exact.
    """
    if not margin:  # halves go up, as in Pillow, not to the even number
        rounded = cv2.convertScaleAbs(sums, beta=2.0 ** -(_SHORT + 2))
        return np.asarray(rounded, np.uint8), np.flatnonzero(np.broadcast_to(inexact, sums.shape))
    low = cv2.convertScaleAbs(sums, beta=-margin)
    high = cv2.convertScaleAbs(sums, beta=margin)
    return np.asarray(low, np.uint8), np.flatnonzero(low != high)
