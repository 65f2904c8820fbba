"""Parts whose verdict is planted.

Random weights decide nothing, so what a part is, is planted: `clip_umci` runs as always and its
map is then replaced, by zeros for a good part and by squares for a defective one. Every row so
does the same work, whatever its weights.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

GOOD, DEFECTIVE = "good part", "defective part"
MOST_BOXES = 16
_CELLS = 4  # squares along a side of the planted map


def planted_map(size: int, boxes: int) -> NDArray[np.float32]:
    """A map [size,size] with `boxes` squares of ones, at most 16, that do not touch."""
    if not 0 <= boxes <= MOST_BOXES:
        raise ValueError(f"boxes={boxes} must lie in 0..{MOST_BOXES}.")
    rough = np.zeros((size, size), np.float32)
    cell = size // _CELLS
    for number in range(boxes):
        top, left = (cell * i + cell // 4 for i in divmod(number, _CELLS))
        rough[top : top + cell // 2, left : left + cell // 2] = 1
    return rough


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """A picture HxWx3; its content changes no time."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    large = cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large, np.uint8)
