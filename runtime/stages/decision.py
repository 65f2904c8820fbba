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
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.result import ANOMALOUS, GOOD, NOT_JUDGED, Region
from clipsam.runtime.ops.components import Component, find_components, pixel_area
from clipsam.runtime.ops.runs import Indices
from clipsam.runtime.stages.naming import Kinds
from clipsam.runtime.stages.prompts import Prompts

_LEAST_TOLD = 0.01  # probability
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
    kinds: Sequence[Kinds] = (),
) -> Decision:
    """Mask, regions, score and verdict.

    `final` [H,W] is the fixed-scale map, `prompts` what the rough map said, `refined` whether
    SAM's masks are part of `final`; without them the rough map's components are the answer.
    `reasons` are those of `Decision`; `kinds` those of the first components. A region is called
    what the component is that it shares most pixels with.
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
    found = _named(_regions(regions, mask, final), regions, components[: len(kinds)], kinds)
    return Decision(mask, found, prompts.score, prompts.limit, tuple(reasons))


def outlined(component: Component, score: float, kinds: Kinds) -> Region:
    """A component by itself as a region."""
    outline = _outer_contours(component.mask, component.x_min, component.y_min)[0].reshape(-1, 2)
    return Region(
        box=_box(component),
        area=component.area,
        centroid=component.centroid,
        contour=tuple((x, y) for x, y in outline.tolist()),
        score=score,
        kinds=listed(kinds),
    )


def listed(kinds: Kinds) -> dict[str, float]:
    """The kinds that a result tells: to three digits, without the least probable."""
    return {word: round(p, 3) for word, p in kinds.items() if p >= _LEAST_TOLD}


def _named(
    found: tuple[Region, ...],
    regions: Sequence[Component],
    components: Sequence[Component],
    kinds: Sequence[Kinds],
) -> tuple[Region, ...]:
    """The regions with the kinds of the components that they share most pixels with."""
    if not components:
        return found
    named = []
    for region, own in zip(found, regions, strict=True):
        shared = [_shared(own, component) for component in components]
        most = int(np.argmax(shared))
        named.append(replace(region, kinds=listed(kinds[most])) if shared[most] else region)
    return tuple(named)


def _shared(a: Component, b: Component) -> int:
    """How many pixels two components have in common."""
    apart = a.x_max < b.x_min or b.x_max < a.x_min or a.y_max < b.y_min or b.y_max < a.y_min
    if apart:
        return 0
    few, many = sorted((a.pixels, b.pixels), key=len)
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return int((many[at] == few).sum())


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
            box=_box(c),
            area=c.area,
            centroid=c.centroid,
            contour=outline,
            score=score,
        )
        for c, outline, score in zip(components, outlines, scores, strict=True)
    )


def _box(c: Component) -> tuple[int, int, int, int]:
    return c.x_min, c.y_min, c.x_max - c.x_min + 1, c.y_max - c.y_min + 1


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
