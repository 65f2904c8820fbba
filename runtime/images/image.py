"""What an image is: HxWx3 uint8 RGB, within bounds that every stage may rely on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import ImageError

MIN_SIDE = 16  # smaller than one patch of CLIP there is nothing to compare with anything

Image = NDArray[np.uint8]


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
