"""The picture a person looks at: the image, the map on top, the regions outlined."""

from __future__ import annotations

import cv2
import numpy as np

from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image

_OUTLINE = (255, 40, 40)  # RGB


def overlay(image: Image, result: Result) -> Image:
    """HxWx3 uint8 RGB: the map as heat whose strength is its value, so a clean part stays clean."""
    heat = cv2.applyColorMap((result.score_map * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    alpha = np.clip(result.score_map * 1.2, 0, 0.6)[..., None]
    # TURBO is dark at its low end; there alpha is near zero, so the part shows through.
    mixed = image * (1 - alpha) + heat[..., ::-1] * alpha
    picture = np.ascontiguousarray(mixed.astype(np.uint8))
    line = max(1, round(max(image.shape[:2]) / 500))
    for region in result.regions:
        contour = np.array(region.contour, np.int32).reshape(-1, 1, 2)
        cv2.drawContours(picture, [contour], -1, _OUTLINE, line, cv2.LINE_AA)
    return picture
