"""Connected components of a binary map, in an order that does not depend on the library."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


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
    mask: NDArray[np.bool_]  # within its box, [y_max-y_min+1, x_max-x_min+1]

    @property
    def window(self) -> tuple[slice, slice]:
        """(rows, columns) of its box, to index a map with."""
        return slice(self.y_min, self.y_max + 1), slice(self.x_min, self.x_max + 1)

    def pixels(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(xs, ys) of its pixels in the map, in row-major order."""
        ys, xs = np.nonzero(self.mask)
        return xs + self.x_min, ys + self.y_min


def find_components(
    binary: NDArray[np.bool_], weights: NDArray[np.float32], min_area: int
) -> list[Component]:
    """Components of at least `min_area` pixels, largest evidence first, ties by position."""
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(
        binary.view(np.uint8), connectivity=8
    )
    found = []
    for label in range(1, count):
        x, y, width, height, area = (int(v) for v in stats[label])
        if area < min_area:
            continue
        rows, columns = slice(y, y + height), slice(x, x + width)
        mask = labels[rows, columns] == label
        evidence = float(weights[rows, columns][mask].sum(dtype=np.float64))
        centroid = (float(centroids[label, 0]), float(centroids[label, 1]))
        found.append(Component(x, y, x + width - 1, y + height - 1, area, centroid, evidence, mask))
    return sorted(found, key=lambda c: (-c.evidence, c.y_min, c.x_min, c.y_max, c.x_max))


def pixel_area(fraction: float, shape: tuple[int, ...]) -> int:
    """A fraction of the image's area in whole pixels, at least one."""
    return max(1, round(fraction * shape[0] * shape[1]))
