"""From the final map to a decision: mask, regions, image score and verdict.

SAM redraws a defect's edge and may not argue it away: a component of the rough map that the final
map loses (SAM's masks missed it, or it was one too many for SAM) stays as CLIP drew it. So the
verdict is the same with and without SAM, and a part that a deadline left unrefined is judged alike.

The decision is always taken on the fixed scale of Eq. 9, whatever normalisation the map is
returned in, so that one threshold means the same on every part.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    # map.
    threshold: float = 0.25
    min_area: float = 1e-4  # of the image's area; smaller regions are ignored

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or not 0 <= self.min_area < 1:
            raise ValueError("threshold must lie in (0,1) and min_area in [0,1)")


def decide(
    final: NDArray[np.float32],
    components: Sequence[Component],
    options: DecisionOptions,
    *,
    refined: bool,
) -> tuple[NDArray[np.bool_], tuple[Region, ...]]:
    """Mask bool [H,W] and its regions, largest evidence first.

    `final` is the fixed-scale map, `components` those of the rough map (Eq. 7), `refined` whether
    SAM's masks are part of `final`; without them the components are the answer.
    """
    mask = np.zeros(final.shape, np.bool_)
    if refined:
        smallest = pixel_area(options.min_area, final.shape)
        for region in find_components(final > options.threshold, final, smallest):
            mask[region.window] |= region.mask
    for component in components:
        if not mask[component.window][component.mask].any():
            mask[component.window] |= component.mask
    return mask, tuple(_region(region, final) for region in find_components(mask, final, 1))


def _region(component: Component, final: NDArray[np.float32]) -> Region:
    c = component
    values = final[c.window][c.mask]
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
