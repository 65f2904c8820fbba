"""From the final map to a decision: mask, regions, score and verdict.

`score > limit` is the verdict. Both come from the rough map (`prompts.find_prompts`): SAM redraws
defects, so the verdict is the same with it, without it and under a deadline.

SAM redraws a defect's edge and may not argue it away: a component of the rough map that the final
map loses (SAM's masks missed it, or it was one too many for SAM) stays as CLIP drew it, and a
region that touches none is none. So an anomalous part has a region, and a good one has none.

The mask is always drawn on the fixed scale of Eq. 9, whatever normalisation the map is returned in.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.result import ANOMALOUS, GOOD, NOT_JUDGED, Region
from clipsam.runtime.ops.components import Component, find_components, pixel_area
from clipsam.runtime.ops.runs import Indices
from clipsam.runtime.stages.prompts import Prompts

Outline = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DecisionOptions:
    """How far a defect reaches in the final map; part of the bundle's manifest."""

    # On the fixed scale. 0.25 is O_f + sum m s > 1: at least one confident mask beside the rough
    # map.
    threshold: float = 0.25
    min_area: float = 1e-4  # of the image's area; smaller regions are ignored

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or not 0 <= self.min_area < 1:
            raise ValueError("threshold must lie in (0,1) and min_area in [0,1)")


@dataclass(frozen=True, eq=False)
class Decision:
    """What the final map of one image comes to.

    Attributes:
      mask: bool [H,W], the union of the regions.
      regions: largest evidence first.
      score: of the part.
      limit: what the score of a good part does not exceed.
      reasons: why the image may not be called good.
    """

    mask: NDArray[np.bool_]
    regions: tuple[Region, ...]
    score: float
    limit: float
    reasons: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """ "anomalous" if the score is above the limit, else "good", or "not_judged" where there
        are reasons."""
        if self.score > self.limit:
            return ANOMALOUS
        return NOT_JUDGED if self.reasons else GOOD


def decide(
    final: NDArray[np.float32],
    prompts: Prompts,
    options: DecisionOptions,
    *,
    refined: bool,
    reasons: Collection[str] = (),
) -> Decision:
    """Mask, regions, score and verdict.

    `final` [H,W] is the fixed-scale map, `prompts` what the rough map said, `refined` whether
    SAM's masks are part of `final`; without them the rough map's components are the answer.
    `reasons` are those of `Decision`.
    """
    components = prompts.components
    mask = np.zeros(final.shape, np.bool_)
    flat = mask.reshape(-1)
    regions: list[Component] = []
    if refined and components:
        smallest = pixel_area(options.min_area, final.shape)
        regions = find_components(final > options.threshold, final, smallest)
        rough = np.zeros(flat.shape, np.bool_)
        rough[_pixels(components)[0]] = True
        regions = [
            region for region, met in zip(regions, _meet(regions, rough), strict=True) if met
        ]
        flat[_pixels(regions)[0]] = True
    lost = [c for c, met in zip(components, _meet(components, flat), strict=True) if not met]
    if lost:
        flat[_pixels(lost)[0]] = True
        regions = find_components(mask, final, 1)  # what was added may join regions
    found = _regions(regions, mask, final)
    return Decision(mask, found, prompts.score, prompts.limit, tuple(reasons))


def _pixels(components: Sequence[Component]) -> tuple[Indices, Indices]:
    """All pixels of several components, and where each component's begin."""
    if not components:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    count = np.array([c.area for c in components])
    return np.concatenate([c.pixels for c in components]), np.cumsum(count) - count


def _meet(components: Sequence[Component], flat: NDArray[np.bool_]) -> list[bool]:
    """For each component whether one of its pixels is set in a flattened mask."""
    pixels, first = _pixels(components)
    return np.logical_or.reduceat(flat.take(pixels), first).tolist() if components else []


def _regions(
    components: Sequence[Component], mask: NDArray[np.bool_], final: NDArray[np.float32]
) -> tuple[Region, ...]:
    """The components of `mask`, with their outlines and scores."""
    if not components:
        return ()
    pixels, first = _pixels(components)
    scores = np.maximum.reduceat(final.take(pixels), first).tolist()
    outlines = _outlines(components, mask)
    return tuple(
        Region(
            box=(c.x_min, c.y_min, c.x_max - c.x_min + 1, c.y_max - c.y_min + 1),
            area=c.area,
            centroid=c.centroid,
            contour=outline,
            score=score,
        )
        for c, outline, score in zip(components, outlines, scores, strict=True)
    )


def _outlines(components: Sequence[Component], mask: NDArray[np.bool_]) -> list[Outline]:
    """The outer outline of every component of `mask`."""
    # All at once, within the rectangle that holds them: one by one, boxes that overlap would be
    # searched over and over.
    top, left = min(c.y_min for c in components), min(c.x_min for c in components)
    bottom, right = max(c.y_max for c in components), max(c.x_max for c in components)
    contours = _outer_contours(mask[top : bottom + 1, left : right + 1], left, top)
    points = np.concatenate(contours).reshape(-1, 2)
    count = np.array([len(contour) for contour in contours])
    start = np.cumsum(count) - count
    # A component's first pixel is a corner of its outline, and so among the points.
    flat = points[:, 1].astype(np.intp) * mask.shape[1] + points[:, 0]
    of_first = dict(zip(np.minimum.reduceat(flat, start).tolist(), range(len(start)), strict=True))
    corners = [(x, y) for x, y in points.tolist()]
    outlines = []
    for component in components:
        index = of_first.get(int(component.pixels[0]))
        if index is None:  # it lies in the hole of another, where outer outlines do not show
            inner = _outer_contours(component.mask, component.x_min, component.y_min)
            outlines.append(tuple((x, y) for x, y in inner[0].reshape(-1, 2).tolist()))
        else:
            outlines.append(tuple(corners[start[index] : start[index] + count[index]]))
    return outlines


def _outer_contours(mask: NDArray[np.bool_], x: int, y: int) -> list[NDArray[np.int32]]:
    contours, _ = cv2.findContours(
        mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
    )
    return [np.asarray(contour, np.int32) for contour in contours]
