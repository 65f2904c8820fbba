"""Pictures of the same part, taken twice or saved again: they count once.

A line that films, or a folder that was copied, would else promise more than it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.images.image import Image

_SIDE = 96
_SAME = 4.0  # levels of 255: nowhere (but in 1 % of it) do two pictures of one part differ by more

Thumbnail = NDArray[np.float32]


def thumbnail(image: Image) -> Thumbnail:
    """What pictures are compared by: gray [96,96] around its own mean, so that a lamp that
    flickers makes no other part."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(small - small.mean(), np.float32)


def first_of_each(thumbnails: Sequence[Thumbnail]) -> list[int]:
    """The pictures that are kept: the first of every part."""
    kept: list[int] = []
    flat = np.stack([t.ravel() for t in thumbnails]) if thumbnails else np.zeros((0, 1))
    for index, one in enumerate(flat):
        # By the mean first, which rules out nearly all; the share of large differences then tells.
        near = [k for k in kept if np.abs(flat[k] - one).mean() < _SAME]
        if not any(np.quantile(np.abs(flat[k] - one), 0.99) < _SAME for k in near):
            kept.append(index)
    return kept
