"""An image, HxWx3 uint8 RGB, becomes the models' inputs.

Training and evaluation use these functions too, so that a model sees on the box what it saw when
it was trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.ops.pillow_resize import resize_bilinear

ZOOMS = ("off", "auto")


@dataclass(frozen=True)
class PreprocessOptions:
    """How images are brought to the models' sizes; a bundle asks for what it was trained with."""

    clip: str = "squash-area-cubic"  # aspect ignored; area when shrinking, cubic when enlarging
    sam: str = "longest-side-pillow-bilinear"  # aspect kept, padded bottom and right with zeros
    zoom: str = "off"  # "auto": SAM is shown crops around defects where they show more

    def __post_init__(self) -> None:
        known = ("squash-area-cubic", "longest-side-pillow-bilinear")
        if (self.clip, self.sam) != known:
            raise ValueError(f"unknown preprocessing {self.clip!r}, {self.sam!r}")
        if self.zoom not in ZOOMS:
            raise ValueError(f"zoom={self.zoom!r} must be one of {', '.join(ZOOMS)}")


def clip_input(image: Image, size: int) -> Image:
    """HxWx3 uint8 -> 1 x size x size x 3 uint8, squashed (aspect ignored).

    Area averaging along sides that shrink (OpenCV's cubic would alias), cubic along sides that
    grow.
    """
    height, width = image.shape[:2]
    small = (min(width, size), min(height, size))
    if small != (width, height):
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    if small != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC).astype(
            np.uint8, copy=False
        )
    return np.ascontiguousarray(image)[None]


def sam_input(image: Image, geometry: Geometry) -> tuple[Image, NDArray[np.int64]]:
    """HxWx3 uint8 -> (1 x D x D x 3 uint8 padded bottom and right, valid size int64 [2] (h, w))."""
    height, width = geometry.sam_shape
    padded = np.zeros((1, geometry.sam_size, geometry.sam_size, 3), np.uint8)
    padded[0, :height, :width] = resize_bilinear(image, height, width)
    return padded, np.array([height, width], np.int64)
