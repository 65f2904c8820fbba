"""Connected components of a binary map, in an order that does not depend on any library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.ops.runs import Indices, Runs


@dataclass(frozen=True)
class Component:
    """One 8-connected component. Coordinates are pixels of the map; the box is inclusive."""

    x_min: int
    y_min: int
    x_max: int
    y_max: int
    area: int
    centroid: tuple[float, float]  # (x, y)
    evidence: float  # sum of the weights over its pixels
    pixels: Indices  # its pixels in the flattened map, ascending: row by row
    map_width: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Its pixels within its box, bool [y_max-y_min+1, x_max-x_min+1]. Made at every call."""
        ys, xs = np.divmod(self.pixels, self.map_width)
        mask = np.zeros((self.y_max - self.y_min + 1, self.x_max - self.x_min + 1), np.bool_)
        mask[ys - self.y_min, xs - self.x_min] = True
        return mask


def find_components(
    binary: NDArray[np.bool_], weights: NDArray[np.float32], min_area: int
) -> list[Component]:
    """Components of at least `min_area` pixels, largest evidence first, ties by position."""
    runs, first = _by_component(Runs.of(binary), min_area)
    if not len(runs):
        return []
    y, x = np.divmod(runs.starts, runs.width)
    last = x + runs.lengths - 1
    ends = np.append(first[1:], len(runs)) - 1
    area = np.add.reduceat(runs.lengths, first)
    # Sums of whole numbers: a centroid does not depend on the order of summation.
    centroid_x = np.add.reduceat(runs.lengths * (x + last) // 2, first) / area
    centroid_y = np.add.reduceat(runs.lengths * y, first) / area
    columns = zip(
        np.minimum.reduceat(x, first).tolist(),
        y[first].tolist(),
        np.maximum.reduceat(last, first).tolist(),
        y[ends].tolist(),
        area.tolist(),
        zip(centroid_x.tolist(), centroid_y.tolist(), strict=True),
        strict=True,
    )
    pixels = runs.pixels()
    values = weights.take(pixels)
    found, start = [], 0
    for x_min, y_min, x_max, y_max, size, centroid in columns:
        own = slice(start, start + size)
        evidence = float(values[own].sum(dtype=np.float64))
        found.append(
            Component(x_min, y_min, x_max, y_max, size, centroid, evidence, pixels[own], runs.width)
        )
        start += size
    # Sorting is stable and the components come by their first pixel, so no tie is left to chance.
    return sorted(found, key=lambda c: (-c.evidence, c.y_min, c.x_min, c.y_max, c.x_max))


def _by_component(runs: Runs, min_area: int) -> tuple[Runs, Indices]:
    """The runs of the components of at least `min_area` pixels, component by component.

    Components come by their first pixel, each row by row. Also where each begins in the runs.
    """
    if not len(runs):
        return runs, np.zeros(0, np.intp)
    roots = runs.roots()
    order = np.argsort(roots, kind="stable")
    runs, roots = runs.take(order), roots[order]
    first = np.flatnonzero(np.diff(roots, prepend=-1))
    count = np.diff(first, append=len(runs))
    large = np.add.reduceat(runs.lengths, first) >= min_area
    if not large.all():
        runs, count = runs.take(np.repeat(large, count)), count[large]
        first = np.cumsum(count) - count
    return runs, first


def pixel_area(fraction: float, shape: tuple[int, ...]) -> int:
    """A fraction of the image's area in whole pixels, at least one."""
    return max(1, round(fraction * shape[0] * shape[1]))
