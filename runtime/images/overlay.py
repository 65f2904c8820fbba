"""The picture a person looks at: the image, the map on top, the regions outlined."""

from __future__ import annotations

import cv2
import numpy as np

from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image

_OUTLINE = (255, 40, 40)  # RGB
_IGNORED = (170, 170, 170)
_ROWS = 256  # mixed at a time: as floats the picture takes four times its memory, and twice
_AT_LIMIT = 0.15  # how strong the heat is at the limit, 0..1


def overlay(image: Image, result: Result) -> Image:
    """HxWx3 uint8 RGB: the map as heat over the part.

    The colours are anchored at the limit: what is below half of it does not show, at the limit the
    heat is faint, and it is full where the map is as far above the limit as it can be.
    """
    limit = min(max(result.map_limit, 1e-6), 1 - 1e-6)
    strength = np.interp(np.arange(256) / 255, (limit / 2, limit, 1), (0, _AT_LIMIT, 1))
    # TURBO is dark at its low end; there alpha is near zero, so the part shows through.
    heat = cv2.applyColorMap(np.round(strength * 255).astype(np.uint8)[:, None], cv2.COLORMAP_TURBO)
    alphas = np.minimum(strength * 1.2, 0.6).astype(np.float32)
    picture = np.empty(image.shape, np.uint8)
    for top in range(0, len(image), _ROWS):
        rows = slice(top, top + _ROWS)
        levels = (result.score_map[rows] * 255).astype(np.uint8)
        alpha = alphas[levels][..., None]
        picture[rows] = image[rows] * (1 - alpha) + heat[:, 0, ::-1][levels] * alpha
    line = max(1, round(max(image.shape[:2]) / 500))
    for regions, colour in ((result.ignored, _IGNORED), (result.regions, _OUTLINE)):
        for region in regions:
            contour = np.array(region.contour, np.int32).reshape(-1, 1, 2)
            cv2.drawContours(picture, [contour], -1, colour, line, cv2.LINE_AA)
    return picture
