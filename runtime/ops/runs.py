"""A binary map as horizontal runs, and the components that the runs form.

A run is a maximal row of true pixels. There are few of them (a blob has one or two a row), so
everything about components is arithmetic on short arrays: no label image, no loop over pixels, and
an order that no library decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]

_BLOCK = 1 << 18  # pixels scanned at a time: what a core's cache holds


@dataclass(frozen=True)
class Runs:
    """Runs of a map of `width` columns, as indices into the flattened map, ascending."""

    starts: Indices
    lengths: Indices
    width: int

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, binary: NDArray[np.bool_]) -> Runs:
        """The runs of bool [H,W]."""
        height, width = binary.shape
        step = max(1, _BLOCK // width)
        # One false column before each row and one pixel after the last: a run is a pair of edges.
        padded = np.zeros(step * (width + 1) + 1, np.bool_)
        grid = padded[:-1].reshape(step, width + 1)
        found = []
        for top in range(0, height, step):
            block = binary[top : top + step]
            if not block.any():
                continue
            grid[: len(block), 1:] = block
            grid[len(block) :] = False
            edges = np.flatnonzero(padded[1:] != padded[:-1])
            edges -= edges // (width + 1)  # without the false columns
            edges += top * width
            found.append(edges)
        edges = np.concatenate(found) if found else np.zeros(0, np.intp)
        starts = edges[::2].copy()
        return cls(starts, edges[1::2] - starts, width)

    def pixels(self) -> Indices:
        """Every pixel of every run, in the order of the runs."""
        before = np.cumsum(self.lengths) - self.lengths
        pixels = np.repeat(self.starts - before, self.lengths)
        pixels += np.arange(len(pixels))
        return pixels

    def take(self, which: NDArray[np.bool_] | Indices) -> Runs:
        """Some of the runs."""
        return Runs(self.starts[which], self.lengths[which], self.width)

    def roots(self) -> Indices:
        """For every run the first run of its 8-connected component."""
        one, other = self._neighbours()
        parent = np.arange(len(self))
        # Every root takes the smallest root it touches as its parent, until none touches another.
        # The number of touching pairs falls quickly: a few rounds even for spirals.
        while True:
            of_one, of_other = parent[one], parent[other]
            apart = of_one != of_other
            if not apart.any():
                return parent
            one, other = one[apart], other[apart]
            of_one, of_other = of_one[apart], of_other[apart]
            np.minimum.at(parent, np.maximum(of_one, of_other), np.minimum(of_one, of_other))
            while (parent != (grand := parent[parent])).any():
                parent = grand

    def _neighbours(self) -> tuple[Indices, Indices]:
        """Pairs of runs in successive rows that touch by a side or a corner."""
        rows = self.starts // self.width
        # With a gap of one between rows, a pixel and the one below it are `stride` apart, and a
        # run reaching over its row's end touches nothing of the next.
        stride = self.width + 1
        starts = self.starts + rows
        stops = starts + self.lengths
        first = np.searchsorted(stops, starts + stride, side="left")
        last = np.searchsorted(starts, stops + stride, side="right")
        count = last - first
        upper = np.repeat(np.arange(len(self)), count)
        before = np.cumsum(count) - count
        lower = np.arange(len(upper)) + np.repeat(first - before, count)
        return upper, lower
