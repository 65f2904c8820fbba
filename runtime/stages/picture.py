"""What can be said of a picture before anything is looked for in it: whether there is one."""

from __future__ import annotations

import cv2
import numpy as np

from clipsam.runtime.core.result import BLACK, BURNT_OUT, EMPTY
from clipsam.runtime.images.image import Image

_SIDE = 256  # pixels a side that are looked at, about
_DARK, _BRIGHT, _FLAT = 12, 250, 0.5  # levels of 0..255; the last is a standard deviation
_ALL = 0.99  # of the pixels


def obvious_reasons(image: Image) -> tuple[str, ...]:
    """Why HxWx3 uint8 shows nothing that could be good, as far as that is the same for any product.

    Black: nearly every pixel is dark. Burnt out: nearly every pixel is white. Empty: all of it has
    one gray value, without even the noise of a camera. Few pixels are looked at: lamps and lens
    caps make no small differences.
    """
    step = max(1, max(image.shape[:2]) // _SIDE)
    gray = np.asarray(cv2.cvtColor(image[::step, ::step].copy(), cv2.COLOR_RGB2GRAY))
    if (gray <= _DARK).mean() > _ALL:
        return (BLACK,)
    if (gray >= _BRIGHT).mean() > _ALL:
        return (BURNT_OUT,)
    return (EMPTY,) if gray.std() < _FLAT else ()
