"""Pillow's antialiased bilinear resize, bit for bit, in NumPy.

SAM's own predictor resizes with Pillow. Matching it exactly makes stage two agree with
`SamPredictor` to the last bit of its input, without Pillow on the box. Pillow's method
(`Resample.c`): triangle-filter weights in 22-bit fixed point, a horizontal and a
vertical pass, each rounded to uint8.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

_PRECISION = 32 - 8 - 2  # bits of a weight, as in Pillow


@lru_cache(maxsize=64)
def _taps(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """For each of `new` outputs: source indices [new,k] and fixed-point weights [new,k]."""
    scale = old / new
    support = max(scale, 1.0)  # of the triangle filter, widened when shrinking
    inverse = 1.0 / support
    count = int(np.ceil(support)) * 2 + 1
    index = np.zeros((new, count), np.intp)
    weight = np.zeros((new, count), np.int32)
    for out in range(new):
        centre = (out + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(old, int(centre + support + 0.5))
        position = (np.arange(first, last) - centre + 0.5) * inverse
        values = np.maximum(0.0, 1.0 - np.abs(position))
        values /= values.sum()
        length = last - first
        index[out, :length] = np.arange(first, last)
        weight[out, :length] = (values * (1 << _PRECISION) + 0.5).astype(np.int32)
    used = int((weight != 0).any(axis=0).nonzero()[0].max()) + 1
    return index[:, :used], weight[:, :used]


def _resize_rows(image: NDArray[np.uint8], new: int) -> NDArray[np.uint8]:
    """Resize the first axis of [H,W,3] to `new`."""
    index, weight = _taps(image.shape[0], new)
    total = np.full((new, *image.shape[1:]), 1 << (_PRECISION - 1), np.int32)
    product = np.empty_like(total)
    for tap in range(index.shape[1]):
        np.multiply(image[index[:, tap]], weight[:, tap, None, None], out=product)
        total += product
    total >>= _PRECISION
    return np.clip(total, 0, 255).astype(np.uint8)


def _resize_columns(image: NDArray[np.uint8], new: int) -> NDArray[np.uint8]:
    """Resize the second axis of [H,W,3] to `new`: rows are contiguous, so it runs transposed."""
    columns = np.asarray(cv2.transpose(image), np.uint8).reshape(image.shape[1], -1, 3)
    turned = _resize_rows(columns, new)
    return np.asarray(cv2.transpose(turned), np.uint8).reshape(-1, new, 3)


def resize_bilinear(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [H,W,3] -> [height,width,3], equal to Pillow's `Image.resize(..., BILINEAR)`."""
    # The order shows in the last bit, as each pass rounds. Pillow 13 runs the vertical pass first
    # when the height loses over twice the pixels that the width does; before, never.
    lost_rows, lost_columns = image.shape[0] - height, image.shape[1] - width
    if lost_rows > max(0, 2 * lost_columns):
        image = _resize_rows(image, height)
    if image.shape[1] != width:
        image = _resize_columns(image, width)
    if image.shape[0] != height:
        image = _resize_rows(image, height)
    return image
