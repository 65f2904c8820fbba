"""Parts whose verdict is planted.

Random weights decide nothing, so what a part is, is planted: `clip_umci` runs as always and its
map is then replaced, by zeros for a good part and by squares for a defective one. Every row so
does the same work, whatever its weights.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Array, Session

GOOD, DEFECTIVE = "good part", "defective part"
MOST_BOXES = 16
_CELLS = 4  # squares along a side of the planted map
_LABELS = 1, 2, 3  # of a point, and of the box's corners


class Wrapped(Session):
    """A session around another one; `_run` is the subclass's."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.provider, self.precision = inner.provider, inner.precision

    def close(self) -> None:
        self.inner.close()


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


def prompt_arrays(prompts: int, points: int, size: int) -> tuple[Array, Array]:
    """Coordinates float32 [Q,P,2] in SAM's frame and labels float32 [Q,P]: points, then a box."""
    rng = np.random.default_rng(0)
    coords = np.sort(rng.uniform(0, size, (prompts, points + 2, 2)).astype(np.float32), axis=1)
    point, *corners = _LABELS
    return coords, np.tile(np.array([point] * points + corners, np.float32), (prompts, 1))
