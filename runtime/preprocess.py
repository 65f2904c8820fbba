"""An image becomes the models' inputs, and `Geometry` maps results back onto it.

Images are HxWx3 uint8 RGB arrays; coordinates are (x, y) in pixels of the image, the centre of the
top left pixel being (0, 0). Training and evaluation use these functions too, so that a model sees
on the box what it saw when it was trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.errors import ImageError
from clipsam.runtime.resample import resize_bilinear

MIN_SIDE = 16  # smaller than one patch of CLIP there is nothing to compare with anything

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class PreprocessOptions:
    """How images are brought to the models' sizes; a bundle asks for what it was trained with."""

    clip: str = "squash-area-cubic"  # aspect ignored; area when shrinking, cubic when enlarging
    sam: str = "longest-side-pillow-bilinear"  # aspect kept, padded bottom and right with zeros

    def __post_init__(self) -> None:
        known = ("squash-area-cubic", "longest-side-pillow-bilinear")
        if (self.clip, self.sam) != known:
            raise ValueError(f"unknown preprocessing {self.clip!r}, {self.sam!r}")


@dataclass(frozen=True)
class Geometry:
    """Where an image of `height` x `width` lies in SAM's square frame of side `sam_size`."""

    height: int
    width: int
    sam_size: int

    @property
    def sam_shape(self) -> tuple[int, int]:
        """(height, width) of the image in SAM's frame: longest side `sam_size`, rounded half up."""
        scale = self.sam_size / max(self.height, self.width)
        return int(self.height * scale + 0.5), int(self.width * scale + 0.5)

    def to_sam(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """(x, y) in image pixels [...,2] -> float32 (x, y) in SAM's frame."""
        height, width = self.sam_shape
        scale = np.array([width / self.width, height / self.height])
        return np.asarray(points * scale, np.float32)


def check_image(image: object, name: str = "The image") -> Image:
    """Return `image` if it is HxWx3 uint8 and large enough, else raise ImageError.

    `name` is what the message calls it: a file's path, where there is one.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"An image must be a NumPy array HxWx3 uint8 RGB, not a {type(image).__name__}: read "
            "files with clipsam.runtime.read_image."
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(
            f"An image must be HxWx3 uint8 RGB, this array is {image.dtype}{list(image.shape)}: "
            "repeat a gray channel three times, drop alpha, scale to 0..255."
        )
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"{name} is {width}x{height} pixels: at least {MIN_SIDE}x{MIN_SIDE} are needed."
        )
    if max(height, width) > 64 * min(height, width):
        raise ImageError(
            f"{name} is {width}x{height} pixels, one side over 64 times the other: cut it into "
            "pieces."
        )
    return image


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
