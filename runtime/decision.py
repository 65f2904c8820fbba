"""From the final map to a decision: mask, regions, image score and verdict.

The decision is always taken on the fixed scale of Eq. 9, whatever normalisation the map is
returned in, so that one threshold means the same on every part.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.components import Component, find_components, pixel_area
from clipsam.runtime.result import Region


@dataclass(frozen=True)
class DecisionOptions:
    """When a pixel of the final map counts as anomalous; part of the bundle's manifest."""

    # On the fixed scale. 0.25 is O_f + sum m s > 1: at least one confident mask beside the rough
    # map. A part without SAM's masks is held against the rough threshold on the same scale.
    threshold: float = 0.25
    min_area: float = 1e-4  # of the image's area; smaller regions are ignored

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or not 0 <= self.min_area < 1:
            raise ValueError("threshold must lie in (0,1) and min_area in [0,1)")


def decide(
    final: NDArray[np.float32], threshold: float, min_area: float
) -> tuple[NDArray[np.bool_], tuple[Region, ...]]:
    """Mask bool [H,W] and its regions, largest evidence first, from the fixed-scale map."""
    components = find_components(final > threshold, final, pixel_area(min_area, final.shape))
    mask = np.zeros(final.shape, np.bool_)
    for c in components:
        mask[c.y_min : c.y_max + 1, c.x_min : c.x_max + 1] |= c.mask
    return mask, tuple(_region(c, final) for c in components)


def _region(component: Component, final: NDArray[np.float32]) -> Region:
    c = component
    values = final[c.y_min : c.y_max + 1, c.x_min : c.x_max + 1][c.mask]
    outlines, _ = cv2.findContours(
        c.mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(c.x_min, c.y_min)
    )
    outline = max(outlines, key=len).reshape(-1, 2)
    return Region(
        box=(c.x_min, c.y_min, c.x_max - c.x_min + 1, c.y_max - c.y_min + 1),
        area=c.area,
        centroid=c.centroid,
        contour=tuple((int(x), int(y)) for x, y in outline),
        score=float(values.max()),
    )
