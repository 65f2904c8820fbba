"""A region close up: small squares of CLIP's input around it, and a convolutional network on them.

A token covers four pixels or more, over which a hole, a spot and a grain of dirt look alike; their
rims and colours do not. What a stain differs from is seen from further away.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.images.image import Image

F32 = NDArray[np.float32]

SIDE = 40  # pixels of a close-up
MOST_HALVINGS = 3  # of it
PLANES = 10  # of a close-up
CHANNELS = 12  # that the network reads
_MARGIN = 6  # pixels around a region at least
_LEAST = 12  # pixels from the middle to a side
_SURROUNDINGS = 0.25  # of CLIP's input, from the middle to a side


def close_up(picture: Image, cover: F32) -> NDArray[np.uint8]:
    """uint8 [SIDE,SIDE,PLANES] of a region in CLIP's input [S,S,3], uint8 RGB: red, green, blue,
    how far the region covers a pixel, and whether the picture is there; 255 is all. Then the same
    of its surroundings.

    `cover` [S,S], 0 to 1, is the region. Half as much again as it is long is shown, and half of
    the picture's side.
    """
    size = picture.shape[0]
    ys, xs = np.nonzero(cover >= min(0.5, float(cover.max()) / 2))
    top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
    longest = max(bottom - top, right - left)
    half = int(np.ceil(max(0.75 * longest, longest / 2 + _MARGIN, _LEAST)))
    middle = (top + bottom) // 2, (left + right) // 2
    halves = half, round(_SURROUNDINGS * size)
    return np.concatenate([_square(picture, cover, middle, half) for half in halves], axis=2)


def _square(picture: Image, cover: F32, middle: tuple[int, int], half: int) -> NDArray[np.uint8]:
    """uint8 [SIDE,SIDE,PLANES / 2] of what lies within `half` pixels of the middle (y, x)."""
    size, (y, x) = len(picture), middle
    pad = max(0, half - y, half - x, y + half - size, x + half - size)
    own = np.s_[y - half + pad : y + half + pad, x - half + pad : x + half + pad]
    there = np.full((size, size), 255, np.uint8)
    planes = [
        cv2.copyMakeBorder(plane, pad, pad, pad, pad, border)[own]
        for plane, border in (
            (picture, cv2.BORDER_REPLICATE),
            ((cover * 255).astype(np.uint8), cv2.BORDER_CONSTANT),
            (there, cv2.BORDER_CONSTANT),
        )
    ]
    how = cv2.INTER_AREA if 2 * half > SIDE else cv2.INTER_LINEAR
    return np.dstack([cv2.resize(plane, (SIDE, SIDE), interpolation=how) for plane in planes])


def network_input(shown: NDArray[np.uint8]) -> F32:
    """Close-ups [n,SIDE,SIDE,PLANES] -> float32 [n,SIDE,SIDE,CHANNELS], of each square: colours
    against their mean around the region, grey also in units of its spread there, the region, and
    what is there."""
    return np.concatenate([_contrasts(square) for square in np.split(shown, 2, axis=3)], axis=3)


def _contrasts(shown: NDArray[np.uint8]) -> F32:
    values = shown.astype(np.float32) / np.float32(255)
    colour, region, there = values[..., :3], values[..., 3:4], values[..., 4:]
    around = (1 - region) * there
    count = np.maximum(around.sum(axis=(1, 2), keepdims=True), 1)
    colour = (colour - (colour * around).sum(axis=(1, 2), keepdims=True) / count) * there
    grey = colour.mean(axis=3, keepdims=True)
    spread = np.sqrt((grey * grey * around).sum(axis=(1, 2), keepdims=True) / count)
    relative = np.clip(grey / (spread + np.float32(0.03)) / 2, -4, 4)
    return np.concatenate([3 * colour, relative, region, there], axis=3)


def convolve(x: F32, layers: Sequence[tuple[F32, F32]]) -> F32:
    """Mean and maximum [2 * C] of a close-up [SIDE,SIDE,CHANNELS] after convolutions of 3 x 3 with
    ReLU. One that keeps the number of channels is added to what went in; before any other but the
    first the maximum of 2 x 2 is taken.

    A layer is its weights [9 * inputs,outputs], row by row of the 3 x 3, and its biases [outputs].
    """
    for number, layer in enumerate(layers):
        weight, bias = layer
        if number and not keeps_channels(layer):
            side = x.shape[0] // 2
            x = x.reshape(side, 2, side, 2, -1).max(axis=(1, 3))
        side, _, channels = x.shape
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
        rows = windows.transpose(0, 1, 3, 4, 2).reshape(side * side, 9 * channels)
        seen = np.maximum(rows @ weight + bias, 0).reshape(side, side, -1)
        x = x + seen if keeps_channels(layer) else seen
    return np.concatenate([x.mean(axis=(0, 1)), x.max(axis=(0, 1))])


def keeps_channels(layer: tuple[F32, F32]) -> bool:
    """Whether a convolution of 3 x 3 has as many channels as it was given."""
    weight, bias = layer
    return len(weight) == 9 * len(bias)
