"""Made-up inputs of the work between the engines: an image, its rough map, SAM's masks.

Sizes are those of the paper's models: a rough map of 336 x 336, logits of 256 x 256, SAM's input
of 1024 x 1024.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.ops.geometry import Geometry

CLIP_SIZE, LOW_SIZE, SAM_SIZE, MASKS = 336, 256, 1024, 3

Map = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """What the engines would be given and would return for one image."""

    image: NDArray[np.uint8]  # [H,W,3]
    rough: Map  # [336,336], in [0,1]
    logits: NDArray[np.float32]  # [q,3,256,256]
    scores: NDArray[np.float32]  # [q,3]

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.image.shape[0], self.image.shape[1], SAM_SIZE)


def make_scene(height: int, width: int, boxes: int, components: int, seed: int = 0) -> Scene:
    """An image with `components` anomalies on a grid, `boxes` of which SAM was asked about.

    The anomalies fill about a tenth of the image, as few large ones or many small ones. SAM's three
    masks of each are its ellipse with a wavy edge: the part, the whole, and a wider one.
    """
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (height, width, 3), np.uint8)
    side = ceil(sqrt(max(1, components)))
    pitch = CLIP_SIZE / side
    radius = pitch * sqrt(0.1 / np.pi) * side / sqrt(max(1, components))
    radius = min(radius, 0.3 * pitch)
    cells = draw.permutation(side * side)[:components]
    centres = (np.stack([cells % side, cells // side], axis=1) + 0.5) * pitch  # (x, y)
    rough = np.full((CLIP_SIZE, CLIP_SIZE), 0.05, np.float32)
    for x, y in centres:
        _bump(rough, x, y, radius, 0.6 + 0.3 * draw.random())
    geometry = Geometry(height, width, SAM_SIZE)
    valid = np.array(geometry.sam_shape[::-1]) / SAM_SIZE * LOW_SIZE
    logits = np.empty((boxes, MASKS, LOW_SIZE, LOW_SIZE), np.float32)
    y, x = np.mgrid[0:LOW_SIZE, 0:LOW_SIZE].astype(np.float32)
    for box in range(boxes):
        centre = centres[box % max(1, components)] / CLIP_SIZE * valid if components else valid / 2
        radii = np.maximum(radius / CLIP_SIZE * valid, 2.5)
        for mask, share in enumerate((0.7, 1.0, 1.3)):
            distance = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])
            waves = cv2.GaussianBlur(draw.standard_normal(x.shape).astype(np.float32), (0, 0), 2)
            logits[box, mask] = np.clip((share - distance) * 12, -25, 15) + 4 * waves
    scores = draw.uniform(0.5, 1.0, (boxes, MASKS)).astype(np.float32)
    return Scene(image, rough, logits, scores)


def _bump(rough: Map, x: float, y: float, radius: float, height: float) -> None:
    """Add a smooth hill of the given radius where it exceeds half its height."""
    reach = ceil(2 * radius) + 1
    rows = slice(max(0, int(y) - reach), min(len(rough), int(y) + reach + 1))
    columns = slice(max(0, int(x) - reach), min(len(rough), int(x) + reach + 1))
    ys, xs = np.mgrid[rows, columns].astype(np.float32)
    hill = height * np.exp(-0.35 * (((xs - x) ** 2 + (ys - y) ** 2) / radius**2) ** 2)
    np.maximum(rough[rows, columns], hill, out=rough[rows, columns])
