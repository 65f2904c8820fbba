"""Asking for kinds of defects, and ignoring others: what is not asked for leaves the rough map.

The map is cut into components at falling levels. Each is named when it first shows, and one that is
not asked for is taken out with its rim, before anything is decided. The levels do not depend on the
limit, so the score of a part is the same whatever the limit is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.ops.components import Component, find_components, pixel_area
from clipsam.runtime.ops.level import component_level
from clipsam.runtime.stages.naming import Kinds
from clipsam.runtime.stages.prompts import PromptOptions

_LEVELS = (1.0, 0.7, 0.45, 0.25)  # of Eq. 7's threshold
_ASKED = 0.2  # of the most probable other word's chance, for what is asked for to count
_MOST = 64  # components that are named at a level, largest evidence first


@dataclass(frozen=True)
class Asked:
    """What counts as a defect, by its words.

    Attributes:
      look_for: only these; None: whatever is not ignored.
      ignore: not these.
    """

    look_for: frozenset[str] | None
    ignore: frozenset[str]

    def keeps(self, kinds: Kinds) -> bool:
        """Whether a region of these kinds counts.

        It is one of `look_for` where they together have a fifth of any other word's chance, and
        one of `ignore` only where they have more than half: a defect that is missed costs more.
        """
        if sum(p for word, p in kinds.items() if word in self.ignore) > 0.5:
            return False
        if self.look_for is None:
            return True
        wanted = sum(p for word, p in kinds.items() if word in self.look_for)
        others = [p for word, p in kinds.items() if word not in self.look_for]
        return wanted >= _ASKED * max(others, default=0.0)


@dataclass(frozen=True)
class Named:
    """A component of the rough map, its kinds, and the level it had: that of the smallest area."""

    component: Component
    kinds: Kinds
    level: float


@dataclass(frozen=True)
class Steered:
    """What was found: `kept` counts, `aside` was taken out of the map."""

    kept: tuple[Named, ...]
    aside: tuple[Named, ...]

    def of(self, component: Component) -> Kinds | None:
        """The kinds under which a component was kept, or the first part of it; None for another."""
        for named in self.kept:
            at = np.searchsorted(component.pixels, named.component.pixels[0])
            if at < component.area and component.pixels[at] == named.component.pixels[0]:
                return named.kinds
        return None

    def mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Where something was taken out of a map [H,W]."""
        mask = np.zeros(shape[0] * shape[1], np.bool_)
        for named in self.aside:
            mask[named.component.pixels] = True
        return mask.reshape(shape[:2])


def steer(
    rough: NDArray[np.float32],
    options: PromptOptions,
    asked: Asked,
    name: Callable[[Component], Kinds],
) -> Steered:
    """Take what is not asked for out of the map [H,W], in place."""
    smallest = pixel_area(options.min_area, rough.shape)
    lowest = options.threshold * _LEVELS[-1]
    kept: list[Named] = []
    aside: list[Named] = []
    known = np.zeros(rough.size, np.bool_)  # what was named and kept
    for share in _LEVELS:
        found = find_components(rough > options.threshold * share, rough, smallest)
        others = []
        for component in found[:_MOST]:
            if known[component.pixels].any():
                continue
            named = Named(component, name(component), _level(rough, component, smallest))
            if asked.keeps(named.kinds):
                kept.append(named)
                known[component.pixels] = True
            else:
                others.append(named)
        if others:
            _take_out(rough, found, [named.component for named in others], lowest)
            aside += others
    return Steered(tuple(kept), tuple(aside))


def _level(rough: NDArray[np.float32], component: Component, smallest: int) -> float:
    """The highest level at which a component alone has the smallest area."""
    c = component
    alone = np.where(c.mask, rough[c.y_min : c.y_max + 1, c.x_min : c.x_max + 1], np.float32(0))
    return component_level(np.ascontiguousarray(alone), smallest)


def _take_out(
    rough: NDArray[np.float32], every: Sequence[Component], out: Sequence[Component], lowest: float
) -> None:
    """Set components and their rims to 0: the slope around them that is nearer to them than to
    another component, down to `lowest`."""
    free = np.ones(rough.shape, np.uint8)
    for component in every:
        free.reshape(-1)[component.pixels] = 0
    _, nearest = cv2.distanceTransformWithLabels(
        free, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_CCOMP
    )
    _, slope = cv2.connectedComponents((rough > lowest).astype(np.uint8), connectivity=8)
    of_nearest = np.unique(np.concatenate([nearest.take(c.pixels) for c in out]))
    of_slope = np.unique(np.concatenate([slope.take(c.pixels) for c in out]))
    rough[np.isin(nearest, of_nearest) & np.isin(slope, of_slope[of_slope > 0])] = 0
