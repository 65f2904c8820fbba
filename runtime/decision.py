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
    SAM's masks are part of `final`; without them the components are the answer. A region that
    touches no component is none: SAM redraws defects, it does not find them.
    """
    mask = np.zeros(final.shape, np.bool_)
    flat = mask.reshape(-1)
    found: list[Component] = []
    if refined:
        smallest = pixel_area(options.min_area, final.shape)
        found = find_components(final > options.threshold, final, smallest)
        suspicious = np.zeros(flat.shape, np.bool_)
        for component in components:
            suspicious[component.pixels] = True
        found = [region for region in found if suspicious.take(region.pixels).any()]
        for region in found:
            flat[region.pixels] = True
    kept = False
    for component in components:
        if not flat[component.pixels].any():
            flat[component.pixels] = kept = True
    if kept:  # what was added may touch a region
        found = find_components(mask, final, 1)
    return mask, _regions(found, mask, final)


def _regions(
    components: Sequence[Component], mask: NDArray[np.bool_], final: NDArray[np.float32]
) -> tuple[Region, ...]:
    """The components of `mask`, with their outlines and scores."""
    if not components:
        return ()
    outlines = _outlines(components, mask)
    return tuple(
        Region(
            box=(c.x_min, c.y_min, c.x_max - c.x_min + 1, c.y_max - c.y_min + 1),
            area=c.area,
            centroid=c.centroid,
            contour=outlines[int(c.pixels[0])],
            score=float(final.take(c.pixels).max()),
        )
        for c in components
    )


def _outlines(
    components: Sequence[Component], mask: NDArray[np.bool_]
) -> dict[int, tuple[tuple[int, int], ...]]:
    """The outer outline of every component of `mask`, by the component's first pixel.

    All at once, within the rectangle that holds them: one by one would be slow where large boxes
    overlap.
    """
    top, bottom = min(c.y_min for c in components), max(c.y_max for c in components)
    left, right = min(c.x_min for c in components), max(c.x_max for c in components)
    outlines, hierarchy = cv2.findContours(
        mask[top : bottom + 1, left : right + 1].view(np.uint8),
        cv2.RETR_CCOMP,
        cv2.CHAIN_APPROX_SIMPLE,
        offset=(left, top),
    )
    found = {}
    for outline, (*_, parent) in zip(outlines, hierarchy[0].tolist(), strict=True):
        if parent < 0:  # not the outline of a hole
            points = np.asarray(outline, np.int32).reshape(-1, 2)
            # The first pixel of a component is a corner of its outline.
            first = int((points[:, 1].astype(np.int64) * mask.shape[1] + points[:, 0]).min())
            found[first] = tuple((x, y) for x, y in points.tolist())
    return found
